//! A submit allocates nothing, frees nothing, whatever becomes of its tokens: counted on the submitting thread.

mod common;

use common::{Rng, random_sae};
use kronsae::monitor::{Monitor, MonitorOptions, Sampling, SiteOptions, TapOptions, TokenTag};
use kronsae::sae::{Encoder, Selection};
use kronsae::{Activations, Dtype};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn called() {
    // A thread that ends may free after its own counter is gone.
    let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
}

// SAFETY: everything is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        called();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        called();
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const D: usize = 64;

#[test]
fn submits_allocate_nothing() {
    let count = |body: &mut dyn FnMut()| {
        let before = CALLS.get();
        body();
        CALLS.get() - before
    };
    assert_eq!(count(&mut || drop(std::hint::black_box(Box::new(1)))), 2, "the counting allocator is not in use");

    let sae = random_sae(Encoder::Dense { latents: 512 }, D, Selection::TopK(8), Dtype::F32, &mut Rng(1));
    let monitor = Monitor::new(MonitorOptions::default()).unwrap();
    let site = monitor.add_site(SiteOptions { name: "a".into(), ..Default::default() }, Arc::new(sae)).unwrap();
    let rows = Rng(2).vec(64 * D);
    let x = Activations::from_f32(&rows, D).unwrap();
    let tag = |row: usize| TokenTag { request: 1, position: row as i32, token: -1, flags: 0 };
    for sampling in [Sampling::Every, Sampling::EveryNth(2)] {
        let mut tap = monitor.tap(site, TapOptions { capacity: 100, sampling, ..Default::default() }).unwrap();
        let (mut accepted, mut short) = (0, 0);
        let calls = count(&mut || {
            for call in 0..3000 {
                // From a sleeping worker to a full queue and back.
                if call % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let taken = tap.submit(x, tag).unwrap();
                accepted += taken;
                short += usize::from(taken < 32);
                if call % 10 == 0 {
                    tap.rewind(1, 0).unwrap();
                    tap.end_request(1).unwrap();
                }
            }
        });
        assert_eq!(calls, 0, "{sampling:?}");
        assert!(accepted > 0 && short > 0, "{accepted} accepted, {short} calls dropped some: not both ways were taken");
    }
    monitor.stop(Duration::from_secs(60)).unwrap();
}
