//! Devices that gather from each other, over the stand-in for NCCL: what is called in which order, captured and replayed;
//! and what is said where it is missing, fails, or another rank is gone.

use crate::libraries::{Installed, is_child, outcome};
use kronsae::Status;
use kronsae::cuda::{Communicator, CommunicatorId, CudaDevice, Device, DeviceMemory, Gathered};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);

fn kernels() -> String {
    std::env::var("FAKE_CUDA_KERNELS").expect("run cargo xtask test --only cuda-driver")
}

/// Runs a child of this module on so many ranks, each a process; what they said, and rank 0's log.
fn run(child: &str, ranks: u32, installed: Installed, more: &[(&str, &str)]) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let said = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                scope.spawn(move || {
                    let (rank_text, ranks_text) = (rank.to_string(), ranks.to_string());
                    let (kernels, log) = (kernels(), format!("{path}/log-{rank}"));
                    let mut environment = vec![
                        ("TEST_RANK", rank_text.as_str()),
                        ("TEST_RANKS", &ranks_text),
                        ("FAKE_NCCL_FOLDER", path),
                        ("FAKE_CUDA_KERNELS", &kernels),
                        ("FAKE_CUDA_LOG", &log),
                    ];
                    environment.extend_from_slice(more);
                    outcome(&format!("groups::{child}"), installed, &environment)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    (said, std::fs::read_to_string(folder.path().join("log-0")).unwrap_or_default())
}

fn number(name: &str) -> u32 {
    std::env::var(name).unwrap().parse().unwrap()
}

fn open() -> Arc<CudaDevice> {
    CudaDevice::shared(0).unwrap()
}

/// Joins; rank 0's mark goes through a file.
fn join(device: &dyn Device) -> Box<dyn Communicator> {
    let (rank, ranks) = (number("TEST_RANK"), number("TEST_RANKS"));
    let file = PathBuf::from(std::env::var("FAKE_NCCL_FOLDER").unwrap()).join("id");
    if rank == 0 {
        let beside = file.with_extension("new");
        std::fs::write(&beside, device.communicator_id().unwrap()).unwrap();
        std::fs::rename(&beside, &file).unwrap();
    }
    while !file.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let id: CommunicatorId = std::fs::read(&file).unwrap().try_into().unwrap();
    device.communicator(&id, rank, ranks).unwrap()
}

fn bytes(device: &dyn Device, memory: &DeviceMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.bytes()];
    device.download(memory, 0, &mut bytes).unwrap();
    bytes
}

fn say(what: &str) {
    println!("\nOUTCOME {what}");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn nccl_that_is_missing_is_named() {
    for (installed, words) in [
        (Installed::WithoutNccl, ["libnccl.so.2 cannot be opened", "nvidia-nccl", "LD_LIBRARY_PATH"]),
        (Installed::HollowNccl, ["libnccl has no ncclCommInitRank", "too old", "2.13"]),
    ] {
        let (said, _) = run("child_asks", 1, installed, &[]);
        for word in words {
            assert!(said[0].contains(word), "{}", said[0]);
        }
    }
    assert_eq!(run("child_asks", 1, Installed::Everything, &[]).0, ["well"]);
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_asks() {
    if !is_child() {
        return;
    }
    let device = open();
    let errors = [
        device.check_communicators().err(),
        device.communicator_id().err(),
        device.communicator(&[0; 128], 0, 1).err(),
    ];
    match &errors {
        // The third of no group.
        [None, None, Some(_)] => say("well"),
        [Some(a), Some(b), Some(c)] if a == b && b == c && a.status() == Status::Unsupported => say(a.message()),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn ranks_gather_on_the_stream_and_in_graphs() {
    for ranks in [1, 2, 3] {
        let (said, log) = run("child_gathers", ranks, Installed::Everything, &[]);
        assert!(said.iter().all(|said| said == "well"), "{said:?}");
        let calls: Vec<&str> = log.lines().filter(|line| line.starts_with("nccl")).collect();
        let start = ["ncclGetUniqueId", "ncclCommInitRank"];
        let gather = ["ncclGroupStart", "ncclAllGather", "ncclAllGather", "ncclGroupEnd"];
        let expected: Vec<&str> = [
            &start[..],
            &gather,
            &["ncclBroadcast"],
            &gather,
            &["ncclGroupStart", "ncclGroupEnd"],
            &["ncclCommDestroy"],
        ]
        .concat();
        assert_eq!(calls, expected, "{log}");
        // What is gathered never touches the host, and nothing was left.
        assert!(log.ends_with("the context is gone\n") && !log.contains("and memory with it"), "{log}");
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_gathers() {
    if !is_child() {
        return;
    }
    let device = open();
    let (rank, ranks) = (number("TEST_RANK") as usize, number("TEST_RANKS") as usize);
    let group = join(&*device);
    let (a, b) = (device.allocate(100 * ranks + 7, "a").unwrap(), device.allocate(33 * ranks, "b").unwrap());
    let parts = [
        Gathered { all: &a, bytes_each: 100 },
        Gathered { all: &b, bytes_each: 0 },
        Gathered { all: &b, bytes_each: 33 },
    ];
    let prepare = |round: usize| {
        device.fill(&a, 0xEE).unwrap();
        device.upload(&a, 100 * rank, &[(10 * round + rank) as u8; 100]).unwrap();
        device.upload(&b, 33 * rank, &[(10 * round + rank + 100) as u8; 33]).unwrap();
    };
    let check = |round: usize| {
        let expected = (0..ranks).flat_map(|rank| [(10 * round + rank) as u8; 100]).chain([0xEE; 7]);
        assert!(bytes(&*device, &a).into_iter().eq(expected), "round {round}");
        let expected = (0..ranks).flat_map(|rank| [(10 * round + rank + 100) as u8; 33]);
        assert!(bytes(&*device, &b).into_iter().eq(expected), "round {round}");
    };
    prepare(0);
    // SAFETY: the memory is there until the end of this test (so below).
    unsafe { group.all_gather(&parts) }.unwrap();
    group.wait(LIMIT).unwrap();
    check(0);

    device.fill(&b, rank as u8 + 1).unwrap();
    // SAFETY: as above.
    unsafe { group.broadcast(&b, 33, ranks as u32 - 1) }.unwrap();
    group.wait(LIMIT).unwrap();
    assert!(bytes(&*device, &b)[..33].iter().all(|&byte| byte == ranks as u8));

    // SAFETY: as above.
    let graph = device.capture(&mut || unsafe { group.all_gather(&parts) }).unwrap().unwrap();
    for round in 1..6 {
        prepare(round);
        // SAFETY: as above.
        unsafe { device.replay(&graph) }.unwrap();
        group.wait(LIMIT).unwrap();
        check(round);
    }
    drop(graph);

    // SAFETY: refused, or of no bytes (so below).
    let short = unsafe { group.all_gather(&[Gathered { all: &b, bytes_each: 34 }]) }.unwrap_err();
    assert_eq!(short.status(), Status::InvalidArgument);
    // SAFETY: as above.
    unsafe { group.all_gather(&[Gathered { all: &b, bytes_each: 0 }]) }.unwrap();
    // SAFETY: as above.
    for refused in unsafe { [group.broadcast(&b, 33 * ranks + 1, 0), group.broadcast(&b, 1, ranks as u32)] } {
        assert_eq!(refused.unwrap_err().status(), Status::InvalidArgument);
    }
    assert_eq!(device.communicator(&[0; 128], 2, 2).err().unwrap().status(), Status::InvalidArgument);
    drop(group);
    drop((a, b));
    drop(device);
    say("well");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn a_rank_that_is_gone_is_not_waited_for_for_ever() {
    let (said, log) = run("child_loses_a_rank", 2, Installed::Everything, &[]);
    assert_eq!(said, ["well", "gone"]);
    assert!(log.contains("ncclCommAbort") && !log.contains("ncclCommDestroy"), "{log}");
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_loses_a_rank() {
    if !is_child() {
        return;
    }
    let device = open();
    let group = join(&*device);
    if number("TEST_RANK") == 1 {
        return say("gone");
    }
    let memory = device.allocate(2, "a part").unwrap();
    // SAFETY: the memory is there until the end of this test (so below).
    unsafe { group.all_gather(&[Gathered { all: &memory, bytes_each: 1 }]) }.unwrap();
    let start = Instant::now();
    let error = group.wait(Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.status(), Status::Internal);
    assert!(error.message().contains("within 1 seconds") && error.message().contains("may have ended"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    // The device is free again; the group is not.
    device.synchronize().unwrap();
    // SAFETY: as above.
    let error = unsafe { group.all_gather(&[Gathered { all: &memory, bytes_each: 1 }]) }.unwrap_err();
    assert!(error.message().contains("given up"), "{error}");
    say("well");
}

#[test]
#[ignore = "needs the library of emulated kernels: cargo xtask test --only cuda-driver"]
fn what_nccl_says_is_passed_on() {
    for function in ["ncclGetUniqueId", "ncclCommInitRank", "ncclAllGather", "ncclGroupEnd", "ncclBroadcast"] {
        let (said, log) = run("child_fails", 1, Installed::Everything, &[("FAKE_NCCL_FAILS", function)]);
        assert!(
            said[0].starts_with("Internal: NCCL cannot ") && said[0].contains("unhandled system error"),
            "{said:?}"
        );
        assert!(said[0].contains(&format!("planted in {function}")), "{said:?}");
        // What was begun is ended.
        let count = |name: &str| log.lines().filter(|line| *line == name).count();
        assert_eq!(count("ncclGroupStart"), count("ncclGroupEnd"), "{log}");
    }
}

#[test]
#[ignore = "runs in a process of its own"]
fn child_fails() {
    if !is_child() {
        return;
    }
    let device = open();
    let memory = device.allocate(2, "a part").unwrap();
    let error = device
        .communicator_id()
        .and_then(|id| device.communicator(&id, 0, 1))
        .and_then(|group| {
            // SAFETY: the memory is there until the end of this test.
            unsafe {
                group.all_gather(&[Gathered { all: &memory, bytes_each: 2 }])?;
                group.broadcast(&memory, 2, 0)
            }
        })
        .unwrap_err();
    say(&format!("{:?}: {}", error.status(), error.message()));
}
