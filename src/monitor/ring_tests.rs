use super::*;
use crate::monitor::flags;

const D: usize = 3;

fn tag(number: u64) -> TokenTag {
    TokenTag { request: number, position: number as i32, token: -1, flags: flags::PROMPT }
}

/// A row that says which token it is, in either dtype.
fn row(number: u64, dtype: Dtype) -> Vec<u8> {
    let value = (number % 128) as f32; // exact in bf16
    let element = |c: usize| value + c as f32 * 0.25;
    match dtype {
        Dtype::F32 => (0..D).flat_map(|c| element(c).to_le_bytes()).collect(),
        _ => (0..D).flat_map(|c| half::bf16::from_f32(element(c)).to_le_bytes()).collect(),
    }
}

#[cfg(not(loom))]
mod model {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Debug, Clone)]
    enum Step {
        /// So many tokens, of BF16 or F32, with so many bytes between rows, of which as many are queued as fit.
        Push {
            count: usize,
            narrow: bool,
            padding: usize,
        },
        Control(u64),
        /// What comes next, of at most so many tokens, of which so many are released.
        Take {
            most: usize,
            released: usize,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..9_usize, any::<bool>(), 0..9_usize)
                .prop_map(|(count, narrow, padding)| Step::Push { count, narrow, padding }),
            1 => (0..5_u64).prop_map(Step::Control),
            3 => (1..9_usize, 0..9_usize).prop_map(|(most, released)| Step::Take { most, released }),
        ]
    }

    #[derive(Debug, PartialEq)]
    enum Item {
        Token { number: u64, dtype: Dtype },
        Control(u64),
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Against two queues that cannot be wrong: everything comes out once, in order, whole; tokens never take a
        /// control's slot nor the other way round.
        #[test]
        fn is_a_queue(capacity in 1..7_usize, controls in 1..4_usize, steps in prop::collection::vec(step(), 1..80)) {
            let (mut producer, mut consumer, ring) = Ring::new(capacity, controls, D, Dtype::F32).unwrap();
            let mut model: VecDeque<Item> = VecDeque::new();
            let mut number = 0_u64;
            let tokens = |model: &VecDeque<Item>| {
                model.iter().filter(|item| matches!(item, Item::Token { .. })).count()
            };
            for step in steps {
                match step {
                    Step::Push { count, narrow, padding } => {
                        let dtype = if narrow { Dtype::Bf16 } else { Dtype::F32 };
                        let stride = D * dtype.size() + padding;
                        let mut bytes = vec![0xEE; count * stride];
                        for i in 0..count {
                            let row = row(number + i as u64, dtype);
                            bytes[i * stride..][..row.len()].copy_from_slice(&row);
                        }
                        let x = Activations::from_bytes(&bytes, dtype, count, D, stride).unwrap();
                        let room = capacity - tokens(&model);
                        prop_assert!(producer.room(count) <= room);
                        prop_assert!(producer.room(count) >= room.min(count));
                        let accepted = producer.room(count).min(count);
                        producer.write(&x, 0, accepted, 7, |i| tag(number + i as u64));
                        producer.publish();
                        for _ in 0..accepted {
                            model.push_back(Item::Token { number, dtype });
                            number += 1;
                        }
                    }
                    Step::Control(request) => {
                        let held = model.len() - tokens(&model);
                        let taken = producer.control(Control::End { request });
                        prop_assert_eq!(taken, held < controls);
                        if taken {
                            model.push_back(Item::Control(request));
                        }
                    }
                    Step::Take { most, released } => match consumer.next(most) {
                        Next::Empty => prop_assert!(model.is_empty() && ring.is_empty()),
                        Next::Control(control) => {
                            let Control::End { request } = control else { panic!("never pushed") };
                            prop_assert_eq!(model.pop_front(), Some(Item::Control(request)));
                        }
                        Next::Tokens(count) => {
                            prop_assert!(count >= 1 && count <= most);
                            let view = consumer.view(count);
                            for at in 0..count {
                                let slot = consumer.slot(at);
                                prop_assert_eq!(slot.nanos, 7);
                                prop_assert_eq!(slot.dtype, view.dtype());
                                prop_assert_eq!(slot.tag, tag(slot.tag.request));
                                let expected = Item::Token { number: slot.tag.request, dtype: slot.dtype };
                                prop_assert_eq!(&model[at], &expected);
                                let mut wide = [0.0; D];
                                view.widen_row(at, &mut wide);
                                let mut expected = [0.0; D];
                                crate::dtype::widen(slot.dtype, &row(slot.tag.request, slot.dtype), &mut expected);
                                prop_assert_eq!(wide, expected);
                            }
                            let released = released.min(count);
                            consumer.release(released);
                            model.drain(..released);
                        }
                    },
                }
                prop_assert_eq!(ring.published() - ring.released(), tokens(&model) as u64);
            }
        }
    }

    #[test]
    fn a_run_is_as_long_as_the_memory_allows() {
        let (mut producer, mut consumer, _) = Ring::new(8, 1, D, Dtype::F32).unwrap();
        let values = [0.5_f32; 6 * D];
        let x = Activations::from_f32(&values, D).unwrap();
        producer.write(&x, 0, 6, 0, tag_of);
        producer.publish();
        assert!(matches!(consumer.next(100), Next::Tokens(6)), "one view, without a copy");
        consumer.release(6);
        assert_eq!(producer.room(100), 8);
        producer.write(&x, 0, 6, 0, tag_of);
        producer.publish();
        assert!(matches!(consumer.next(100), Next::Tokens(2)), "to the end of the memory");
        consumer.release(2);
        assert!(matches!(consumer.next(100), Next::Tokens(4)));
    }

    fn tag_of(i: usize) -> TokenTag {
        tag(i as u64)
    }

    #[test]
    fn bad_extents() {
        for (capacity, controls, d) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
            assert_eq!(
                Ring::new(capacity, controls, d, Dtype::F32).unwrap_err().status(),
                crate::Status::InvalidArgument
            );
        }
        let error = Ring::new(usize::MAX / 2, 1, 64, Dtype::F32).unwrap_err();
        assert_eq!(error.status(), crate::Status::OutOfMemory);
    }
}

/// Every interleaving and every reordering that the memory model allows: `cargo xtask test --only loom`.
#[cfg(loom)]
mod loom_model {
    use super::*;
    use crate::monitor::sync::Sleeper;
    use crate::monitor::wake::Wake;

    fn push(producer: &mut Producer, number: u64) -> bool {
        let bytes = row(number, Dtype::F32);
        let x = Activations::from_bytes(&bytes, Dtype::F32, 1, D, D * 4).unwrap();
        if producer.room(1) == 0 {
            return false;
        }
        producer.write(&x, 0, 1, 0, |_| tag(number));
        producer.publish();
        true
    }

    /// The next thing, its token's row checked and released; None where there is nothing.
    fn take(consumer: &mut Consumer) -> Option<Result<u64, u64>> {
        match consumer.next(1) {
            Next::Empty => None,
            Next::Control(Control::End { request }) => Some(Err(request)),
            Next::Control(Control::Rewind { .. }) => panic!("never pushed"),
            Next::Tokens(_) => {
                let number = consumer.slot(0).tag.request;
                let (mut found, mut expected) = ([0.0; D], [0.0; D]);
                consumer.view(1).widen_row(0, &mut found);
                crate::dtype::widen(Dtype::F32, &row(number, Dtype::F32), &mut expected);
                assert_eq!(found, expected);
                consumer.release(1);
                Some(Ok(number))
            }
        }
    }

    /// A ring of one slot, so that producer and consumer meet at both its ends; a control between two tokens.
    #[test]
    fn everything_arrives_once_and_in_order() {
        loom::model(|| {
            let (mut producer, mut consumer, _ring) = Ring::new(1, 1, D, Dtype::F32).unwrap();
            let thread = loom::thread::spawn(move || {
                let first = push(&mut producer, 1);
                let control = producer.control(Control::End { request: 9 });
                let second = push(&mut producer, 2);
                (first, control, second)
            });
            let mut seen = Vec::new();
            for _ in 0..3 {
                seen.extend(take(&mut consumer));
            }
            let (first, control, second) = thread.join().unwrap();
            while let Some(next) = take(&mut consumer) {
                seen.push(next);
            }
            assert!(first && control, "there was room");
            let mut expected = vec![Ok(1), Err(9)];
            expected.extend(second.then_some(Ok(2)));
            assert_eq!(seen, expected);
        });
    }

    /// A worker that sleeps whenever it finds nothing is always woken: loom reports a thread that nobody wakes.
    #[test]
    fn no_wake_up_is_lost() {
        loom::model(|| {
            let (mut producer, mut consumer, ring) = Ring::new(2, 1, D, Dtype::F32).unwrap();
            let wake = Arc::new(Wake::new(Sleeper::current()));
            let to_wake = Arc::clone(&wake);
            let thread = loom::thread::spawn(move || {
                for number in 1..=2 {
                    assert!(push(&mut producer, number));
                    to_wake.after_publish();
                }
            });
            let mut next = 1;
            while next <= 2 {
                match take(&mut consumer) {
                    Some(found) => {
                        assert_eq!(found, Ok(next));
                        next += 1;
                    }
                    None => wake.sleep(None, || !ring.is_empty()),
                }
            }
            thread.join().unwrap();
        });
    }

    /// The same for a control record, which has no token behind it.
    #[test]
    fn a_control_wakes_as_well() {
        loom::model(|| {
            let (mut producer, mut consumer, ring) = Ring::new(1, 1, D, Dtype::F32).unwrap();
            let wake = Arc::new(Wake::new(Sleeper::current()));
            let to_wake = Arc::clone(&wake);
            let thread = loom::thread::spawn(move || {
                assert!(producer.control(Control::End { request: 3 }));
                to_wake.after_publish();
            });
            loop {
                match take(&mut consumer) {
                    Some(found) => break assert_eq!(found, Err(3)),
                    None => wake.sleep(None, || !ring.is_empty()),
                }
            }
            thread.join().unwrap();
        });
    }
}
