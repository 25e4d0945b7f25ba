//! That all ranks are about to do the same: otherwise their parameters would part without a word.

use super::{Collective, Gathered};
use kronsae::cuda::Device;
use kronsae::{Error, Result};

/// Compares what each rank says of itself with what rank 0 says, and fails on all ranks if one differs. Also a barrier.
///
/// # Errors
/// [`kronsae::Status::InvalidArgument`] naming the ranks that differ, on those ranks with both texts;
/// [`kronsae::Status::Internal`] if a rank is lost.
pub fn agree(collective: &dyn Collective, device: &dyn Device, own: &str) -> Result<()> {
    let what = "what ranks agree on";
    // SAFETY (of all three): memory of this call's own, which lives until the wait below it is over; where that fails,
    // dropping memory waits for what uses it.
    let length = device.allocate(8, what)?;
    device.upload(&length, 0, &(own.len() as u64).to_ne_bytes())?;
    // SAFETY: as said.
    unsafe { collective.broadcast(device, &length, 8, 0) }?;
    collective.wait(device)?;
    let mut bytes = [0; 8];
    device.download(&length, 0, &mut bytes)?;
    let length = u64::from_ne_bytes(bytes) as usize;

    let text = device.allocate(length, what)?;
    if collective.rank() == 0 {
        device.upload(&text, 0, own.as_bytes())?;
    }
    // SAFETY: as said.
    unsafe { collective.broadcast(device, &text, length, 0) }?;
    collective.wait(device)?;
    let mut first = vec![0; length];
    device.download(&text, 0, &mut first)?;

    let verdicts = device.allocate(collective.ranks() as usize, what)?;
    let differs = first != own.as_bytes();
    device.upload(&verdicts, collective.rank() as usize, &[u8::from(differs)])?;
    // SAFETY: as said.
    unsafe { collective.all_gather(device, &[Gathered { all: &verdicts, bytes_each: 1 }]) }?;
    collective.wait(device)?;
    let mut verdicts_read = vec![0; collective.ranks() as usize];
    device.download(&verdicts, 0, &mut verdicts_read)?;
    let ranks: Vec<String> =
        verdicts_read.iter().enumerate().filter(|(_, v)| **v != 0).map(|(rank, _)| rank.to_string()).collect();
    if ranks.is_empty() {
        return Ok(());
    }
    let mut message = format!(
        "not all ranks are about to do the same run as rank 0: not {}. Give all the same flags, data and --out folder",
        ranks.join(", ")
    );
    if differs {
        message.push_str(&format!("\n  rank 0: {}\n  here:   {own}", String::from_utf8_lossy(&first)));
    }
    Err(Error::invalid(message))
}
