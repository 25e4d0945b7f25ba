//! A worker: one thread that takes turns among the taps of its sites, and sleeps when there is nothing to do.

use super::encode::{Site, Turn};
use super::scheduling::{Pace, thread_cpu_time};
use super::shared::{ABANDONED, Core, DRAINING, FAILED, this_is_a_worker};
use super::wake::Wake;
use crate::error::{Error, Result, Status};
use crate::float_env::FloatEnv;
use crate::threads::SignalsBlocked;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

/// After the last token a worker rests this long before it sleeps: at high rates of submits it then finds the next
/// tokens by itself, and no submit pays for waking it.
const LINGER: Duration = Duration::from_micros(50);
/// While a device is behind, a worker that has nothing else to do asks again after `LINGER`, then after twice as long, up to
/// this. It does not wait for the device in the driver, where neither commands nor other taps would reach it.
const LONGEST_ASKING: Duration = Duration::from_millis(1);
/// A worker that records wakes this often, to close shards that have reached their age.
const TICK: Duration = Duration::from_secs(1);

/// What a worker's thread owns.
pub(crate) struct Worker {
    core: Arc<Core>,
    number: usize,
    pub(crate) sites: Vec<Site>,
}

/// Starts worker `number` and waits until it has set itself up.
///
/// # Errors
/// [`Status::OutOfMemory`] if the system gives no thread; those of [`super::Scheduling`].
pub(crate) fn start(core: &Arc<Core>, number: usize) -> Result<JoinHandle<()>> {
    let (sender, receiver) = sync_channel(1);
    let core = Arc::clone(core);
    let _blocked = SignalsBlocked::with_callbacks();
    let thread = std::thread::Builder::new()
        .name(format!("kronsae-mon-{number}"))
        .spawn(move || {
            this_is_a_worker();
            let wake = Wake::new(super::sync::Sleeper::current());
            // Set here alone, and before anybody knows of the worker.
            let _ = core.workers[number].wake.set(wake);
            let ready = core.options.scheduling.apply();
            let usable = ready.is_ok();
            // Its receiver waits below.
            let _ = sender.send(ready);
            if usable {
                live(&core, number);
            }
            core.ended(number);
        })
        .map_err(|e| Error::new(Status::OutOfMemory, format!("cannot start worker {number}: {e}")))?;
    let ready = receiver.recv().unwrap_or_else(|_| Err(Error::new(Status::Internal, "a worker did not start")));
    match ready {
        Ok(()) => Ok(thread),
        Err(error) => {
            // It is at its end.
            let _ = thread.join();
            Err(error)
        }
    }
}

fn live(core: &Arc<Core>, number: usize) {
    let mut worker = Worker { core: Arc::clone(core), number, sites: Vec::new() };
    let lived = catch_unwind(AssertUnwindSafe(|| {
        let _env = FloatEnv::enter();
        worker.work()
    }));
    match lived {
        Ok(Ok(())) => {}
        Ok(Err(error)) => core.fail(format!("worker {number}: {error}")),
        Err(panic) => core.fail(format!("worker {number} panicked: {}", message(&*panic))),
    }
    // Whatever ended it, what was recorded is written, and counted.
    let closed = catch_unwind(AssertUnwindSafe(|| worker.close_recorders()));
    if let Err(panic) = closed {
        core.fail(format!("worker {number} panicked: {}", message(&*panic)));
    }
    // The models and the host's labels go here, with the last of what may panic.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(worker)));
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?")
}

impl Worker {
    fn work(&mut self) -> Result<()> {
        let core = Arc::clone(&self.core);
        let me = &core.workers[self.number];
        let wake = me.wake.get().ok_or_else(|| Error::new(Status::Internal, "a worker without its wake"))?;
        let mut pace = Pace::new(&core.options.scheduling);
        let mut lingered = false;
        let mut asking = LINGER;
        let mut ticked = core.nanos();
        loop {
            while let Some(command) = me.take_command() {
                command(self);
            }
            let state = core.state();
            if state == FAILED {
                return Ok(());
            }
            if state == ABANDONED {
                break;
            }
            let worked = self.round(&core, &mut pace, wake)?;
            if core.nanos() - ticked > TICK.as_nanos() as u64 {
                ticked = core.nanos();
                self.tick();
            }
            if worked {
                (lingered, asking) = (false, LINGER);
                continue;
            }
            me.cpu_nanos.store(thread_cpu_time().as_nanos() as u64, Ordering::Relaxed);
            let mut taps = self.sites.iter().flat_map(|site| &site.taps);
            if taps.clone().any(|intake| intake.waits) {
                if taps.all(|intake| intake.latents.is_some()) {
                    // What is submitted meanwhile has to wait for the device, too: no submit pays for waking this.
                    wake.rest(asking, || me.has_commands() || core.state() != state);
                } else {
                    wake.sleep(Some(asking), || me.has_commands() || core.state() != state || self.has_work());
                }
                asking = (2 * asking).min(LONGEST_ASKING);
                continue;
            }
            if state == DRAINING {
                break;
            }
            if !lingered {
                lingered = true;
                wake.rest(LINGER, || me.has_commands() || core.state() != state);
                continue;
            }
            let recording = self.sites.iter().any(|site| site.recorder.is_some());
            wake.sleep(recording.then_some(TICK), || me.has_commands() || core.state() != state || self.has_work());
            lingered = false;
        }
        Ok(())
    }

    fn close_recorders(&mut self) {
        for site in &mut self.sites {
            // What could not be written was counted; it is no reason to call the whole monitor failed.
            let _ = site.close_recorder();
        }
    }

    /// One turn of each tap; whether any had something.
    fn round(&mut self, core: &Core, pace: &mut Pace, wake: &Wake) -> Result<bool> {
        let me = &core.workers[self.number];
        let mut worked = false;
        for site in &mut self.sites {
            let mut closed = false;
            for at in 0..site.taps.len() {
                match site.turn(core, at)? {
                    Turn::Idle => {}
                    Turn::Control => worked = true,
                    Turn::Tokens { count, busy } => {
                        worked = true;
                        if let Some(rest) = pace.after(count, busy) {
                            let state = core.state();
                            wake.rest(rest, || me.has_commands() || core.state() != state);
                        }
                    }
                }
                closed |= site.taps[at].tap.closed.load(Ordering::Acquire);
                if core.state() == ABANDONED {
                    return Ok(true);
                }
            }
            if closed {
                site.forget_closed_taps();
            }
        }
        if worked {
            me.cpu_nanos.store(thread_cpu_time().as_nanos() as u64, Ordering::Relaxed);
        }
        Ok(worked)
    }

    fn has_work(&self) -> bool {
        self.sites.iter().any(|site| site.taps.iter().any(super::intake::Intake::has_work))
    }

    fn tick(&mut self) {
        for site in &mut self.sites {
            if let Some(recording) = &mut site.recorder {
                recording.recorder.tick();
                site.gauges();
            }
        }
    }

    /// The worker's own part of a site.
    ///
    /// # Errors
    /// [`Status::Internal`] if there is none.
    pub(crate) fn site(&mut self, number: u32) -> Result<&mut Site> {
        let found = self.sites.iter_mut().find(|site| site.shared.number == number);
        found.ok_or_else(|| Error::new(Status::Internal, format!("worker has no site {number}")))
    }
}
