//! Copying and reading spread over a few threads: a GPU takes batches faster than one core can copy them.

use kronsae::Result;

/// Threads at most.
const THREADS: usize = 8;
/// Bytes below which one thread is as fast.
const FEW_BYTES: usize = 8 << 20;

/// Calls `work` on each item: on this thread where there are few `bytes` to move in all, else on a few. What it does to an
/// item must not depend on the others.
///
/// # Errors
/// Of the items whose work failed, the first's error; others may have been worked on or not.
pub(crate) fn spread<T: Send>(items: &mut [T], bytes: usize, work: impl Fn(&mut T) -> Result<()> + Sync) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS);
    if bytes < FEW_BYTES || cores < 2 || items.len() < 2 {
        return items.iter_mut().try_for_each(work);
    }
    let share = items.len().div_ceil(cores);
    let work = &work;
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        let mut done = Ok(());
        for part in items.chunks_mut(share) {
            // A part is lent to its thread as a whole; where none can be had, it is this thread's.
            let lent = std::sync::Mutex::new(Some(part));
            let lent = std::sync::Arc::new(lent);
            let taken = std::sync::Arc::clone(&lent);
            let run = move || match take(&taken) {
                Some(part) => part.iter_mut().try_for_each(work),
                None => Ok(()),
            };
            match std::thread::Builder::new().name("kronsae-copy".into()).spawn_scoped(scope, run) {
                Ok(handle) => running.push(handle),
                Err(_) => {
                    if let Some(part) = take(&lent) {
                        done = done.and_then(|()| part.iter_mut().try_for_each(work));
                    }
                }
            }
        }
        for handle in running {
            match handle.join() {
                Ok(result) => done = done.and(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    })
}

fn take<'a, T>(lent: &std::sync::Mutex<Option<&'a mut [T]>>) -> Option<&'a mut [T]> {
    lent.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kronsae::Error;

    #[test]
    fn every_item_once_and_errors_come_back() {
        for bytes in [0, FEW_BYTES] {
            for count in [0, 1, 2, 7, 100] {
                let mut items = vec![1_u32; count];
                let add = |item: &mut u32| {
                    *item += 1;
                    Ok(())
                };
                spread(&mut items, bytes, add).unwrap();
                assert_eq!(items, vec![2; count]);
            }
            let mut items: Vec<u32> = (0..100).collect();
            let fail = |item: &mut u32| match *item {
                37 | 90 => Err(Error::invalid(format!("item {item}"))),
                _ => Ok(()),
            };
            assert_eq!(spread(&mut items, bytes, fail).unwrap_err().message(), "item 37");
        }
    }
}
