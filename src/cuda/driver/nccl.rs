//! NCCL: devices of several processes gather from each other on the device's own stream.

use super::context::{Context, check as check_driver};
use super::libraries::{Nccl, UniqueId, nccl};
use crate::cuda::communicator::{Communicator, CommunicatorId, Gathered};
use crate::cuda::device::{Address, DeviceMemory};
use crate::error::{Error, Result, Status};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::{CStr, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// `ncclUint8`: everything is bytes here.
const BYTES: c_int = 1;
/// `ncclSuccess` and `ncclInProgress`.
const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// How often a device that works is asked whether it is done.
const ASK_EVERY: Duration = Duration::from_micros(50);

/// A group as NCCL knows it.
type Handle = *mut c_void;

/// Makes NCCL's result an error: it failed to do what `doing` says.
fn check(nccl: &Nccl, result: c_int, doing: &str) -> Result<()> {
    if result == SUCCESS || result == IN_PROGRESS {
        return Ok(());
    }
    let text = |start: *const std::ffi::c_char| {
        // SAFETY: NCCL gives C strings that live as long as the library, or until this thread's next call; or null.
        (!start.is_null()).then(|| unsafe { CStr::from_ptr(start) }.to_string_lossy().into_owned())
    };
    // SAFETY: both take any number, and null for "of no group".
    let (name, last) =
        unsafe { (text((nccl.get_error_string)(result)), text((nccl.get_last_error)(std::ptr::null_mut()))) };
    let mut message = format!("NCCL cannot {doing}: {}", name.unwrap_or_else(|| format!("error {result}")));
    if let Some(last) = last.filter(|last| !last.is_empty()) {
        message.push_str(&format!(" ({last})"));
    }
    Err(Error::new(Status::Internal, message))
}

/// Makes the mark of a new group.
pub(super) fn new_id() -> Result<CommunicatorId> {
    let nccl = nccl()?;
    let mut id: CommunicatorId = [0; 128];
    // SAFETY: it writes 128 bytes.
    check(nccl, unsafe { (nccl.get_unique_id)(id.as_mut_ptr().cast()) }, "begin a group of ranks")?;
    Ok(id)
}

/// One device's place in a group.
pub(super) struct Group {
    nccl: &'static Nccl,
    /// Null once the group was given up.
    handle: Mutex<Handle>,
    rank: u32,
    ranks: u32,
    context: Arc<Context>,
}

// SAFETY: the handle is behind a lock, and NCCL lets any thread use it, one at a time.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// Joins; waits until all ranks have. Its context becomes current for that.
    pub(super) fn join(context: &Arc<Context>, id: &CommunicatorId, rank: u32, ranks: u32) -> Result<Self> {
        if rank >= ranks || c_int::try_from(ranks).is_err() {
            return Err(Error::invalid(format!("rank {rank} of {ranks}: expected 0 to {}", ranks.saturating_sub(1))));
        }
        let nccl = nccl()?;
        let _current = context.enter()?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the context is current; it writes one handle.
        let joined = unsafe { (nccl.comm_init_rank)(&raw mut handle, ranks as c_int, UniqueId(*id), rank as c_int) };
        check(nccl, joined, &format!("join rank {rank} of {ranks} on {}", context.name))?;
        Ok(Group { nccl, handle: Mutex::new(handle), rank, ranks, context: Arc::clone(context) })
    }

    /// The handle while it is held.
    fn with<T>(&self, run: impl FnOnce(Handle) -> Result<T>) -> Result<T> {
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.is_null() {
            return Err(Error::new(Status::Internal, "the group of ranks was given up before"));
        }
        run(*handle)
    }
}

fn pointer(address: Address) -> *mut c_void {
    std::ptr::without_provenance_mut(address as usize)
}

impl Communicator for Group {
    unsafe fn all_gather(&self, parts: &[Gathered<'_>]) -> Result<()> {
        for part in parts {
            part.all.check(0, part.bytes_each.saturating_mul(self.ranks as usize))?;
        }
        let _current = self.context.enter()?;
        let (nccl, stream) = (self.nccl, self.context.stream);
        self.with(|handle| {
            // As one piece of work: its fixed time is that of one.
            // SAFETY: it takes nothing.
            check(nccl, unsafe { (nccl.group_start)() }, "begin gathering")?;
            let mut done = Ok(());
            for part in parts.iter().filter(|part| part.bytes_each > 0) {
                let (all, each) = (part.all.address(), part.bytes_each);
                // SAFETY: inside the memory, as just checked, which the caller keeps; in place, as NCCL defines it: the
                // own part lies at its place. A live group of the current context, and the context's own stream.
                let gathered = unsafe {
                    let from = pointer(all + u64::from(self.rank) * each as u64);
                    (nccl.all_gather)(from, pointer(all), each, BYTES, handle, stream.cast())
                };
                done = done.and(check(nccl, gathered, "gather from the other ranks"));
            }
            // Also after an error: what was begun has to be ended.
            // SAFETY: it takes nothing.
            let ended = check(nccl, unsafe { (nccl.group_end)() }, "gather from the other ranks");
            done.and(ended)
        })
    }

    unsafe fn broadcast(&self, values: &DeviceMemory, bytes: usize, root: u32) -> Result<()> {
        values.check(0, bytes)?;
        if root >= self.ranks {
            return Err(Error::invalid(format!("rank {root}: there are {}", self.ranks)));
        }
        let _current = self.context.enter()?;
        let (nccl, stream, at) = (self.nccl, self.context.stream, pointer(values.address()));
        self.with(|handle| {
            // SAFETY: inside the memory, which the caller keeps; in place. As in `all_gather`.
            let sent = unsafe { (nccl.broadcast)(at, at, bytes, BYTES, root as c_int, handle, stream.cast()) };
            check(nccl, sent, "send to the other ranks")
        })
    }

    fn wait(&self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let current = self.context.enter()?;
        let gone = loop {
            // SAFETY: the context's own stream.
            let asked = unsafe { sys::cuStreamQuery(self.context.stream) };
            if asked != CUresult::CUDA_ERROR_NOT_READY {
                return check_driver(asked, "finish the device's work");
            }
            let state = self.with(|handle| {
                let mut state = SUCCESS;
                // SAFETY: a live group; it writes one number.
                let asked = unsafe { (self.nccl.comm_get_async_error)(handle, &raw mut state) };
                check(self.nccl, asked, "tell how the group is")?;
                check(self.nccl, state, "go on")
            });
            if let Err(error) = state {
                break error;
            }
            if start.elapsed() >= limit {
                let message = format!(
                    "the other ranks have not done their part of a step within {} seconds; one of them may have ended",
                    limit.as_secs()
                );
                break Error::new(Status::Internal, message);
            }
            std::thread::sleep(ASK_EVERY);
        };
        drop(current);
        self.abort();
        Err(gone)
    }

    fn abort(&self) {
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(_current) = self.context.enter()
            && !handle.is_null()
        {
            // SAFETY: a live group, never used again: it is null from now on.
            let _ = unsafe { (self.nccl.comm_abort)(*handle) };
        }
        *handle = std::ptr::null_mut();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Others may wait for what will not come.
            return self.abort();
        }
        let handle = self.handle.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Ok(_current) = self.context.enter()
            && !handle.is_null()
        {
            // SAFETY: made once, destroyed once.
            let _ = unsafe { (self.nccl.comm_destroy)(*handle) };
        }
    }
}
