//! Memory while training stays within what KRONSAE needs: parameters, moments, one batch, the shuffle window, and little
//! more. Measured as the anonymous resident memory of the process, at its peak.

mod fixtures;

use fixtures::{Rng, activations, write_shards};
use std::process::{Command, Stdio};
use std::time::Duration;

fn anonymous_kilobytes(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn peak_is_within_the_budget() {
    let (d, rows) = (256_usize, 12_000_usize);
    let (heads, m, n, k, batch, window) = (1024_usize, 4_usize, 4_usize, 32_usize, 1024_usize, 4096_usize);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    write_shards(&data, &activations(rows, d, &mut Rng(1)), d, 5000);
    let text = |n: usize| n.to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kronsae"))
        .arg("train")
        .arg("--data")
        .arg(&data)
        .arg("--out")
        .arg(folder.path().join("out"))
        .args(["--heads", &text(heads), "--k", &text(k), "--batch", &text(batch), "--shuffle-window", &text(window)])
        .args(["--tokens", &text(40 * batch), "--threads", "2", "--checkpoint-every", "10", "--eval-every", "15"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        peak = peak.max(anonymous_kilobytes(child.id()).unwrap_or(0) * 1024);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());

    let (encoder_rows, latents) = (heads * (m + n), heads * m * n);
    let parameters = 4 * (encoder_rows * d + encoder_rows + latents * d + d);
    let (moments, gradients) = (2 * parameters, parameters);
    let input = 4 * batch * d;
    let pre_activations = 4 * batch * encoder_rows;
    let residual = 4 * batch * d;
    let lists = batch * (k + 2 * k) * 8 * 2;
    let shuffle = window * d * 4;
    let slack = 50_000_000;
    let budget = parameters + moments + gradients + input + pre_activations + residual + lists + shuffle + slack;
    println!("peak {peak} bytes of a budget of {budget}; parameters and moments {}", parameters + moments);
    assert!(peak as usize > parameters + moments, "the measurement missed the run");
    assert!((peak as usize) < budget, "peak {peak} bytes, budget {budget}");
}
