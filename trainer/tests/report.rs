//! The report page: complete, self-contained, and safe against the text it shows.

mod fixtures;

use fixtures::{Rng, activations, write_model, write_shards};
use kronsae::Sae;
use kronsae::sae::{Encoder, Selection};
use kronsae_trainer::data::Dataset;
use kronsae_trainer::eval::{EvalOptions, Evaluation, evaluate};
use kronsae_trainer::examples::{Example, LatentExamples};
use kronsae_trainer::metrics::{EvalRecord, StepRecord};
use kronsae_trainer::report::{RunReport, write};
use std::sync::Arc;

const HOSTILE: &str = "</mark><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' \u{202e}&amp;\n\0";

fn evaluation() -> Evaluation {
    let mut rng = Rng(31);
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("data");
    std::fs::create_dir(&shards).unwrap();
    write_shards(&shards, &activations(200, 8, &mut rng), 8, 200);
    let model =
        write_model(folder.path(), Encoder::Kron { heads: 4, base: 2, extension: 2 }, 8, Selection::TopK(3), &mut rng);
    let sae = Arc::new(Sae::open(model).unwrap());
    evaluate(&sae, &Dataset::open(&[shards]).unwrap(), 0..200, &EvalOptions::default(), &mut |_| ()).unwrap()
}

fn page(report: &RunReport) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    write(&path, report).unwrap();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    std::fs::read_to_string(path).unwrap()
}

/// Every tag that is opened is closed, in order.
fn balanced(html: &str) {
    let mut open = Vec::new();
    for tag in html.split('<').skip(1).map(|part| part.split('>').next().unwrap()) {
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "</{name}> closes something else");
        } else if !tag.ends_with('/') && !["!doctype", "meta"].contains(&name) {
            open.push(name.to_owned());
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

#[test]
fn a_full_report_shows_all_and_loads_nothing() {
    let found = evaluation();
    let curve = (1..=60).map(|step| StepRecord {
        step,
        tokens: step * 100,
        loss: 1.0 / step as f64,
        explained_variance: 1.0 - 2.0 / step as f64,
        l0: 3.0,
        tokens_per_second: 1e4,
        ..StepRecord::default()
    });
    let text = HOSTILE.to_owned();
    let example = Example { row: 1, value: 2.0, before: text.clone(), token: text.clone(), after: text.clone() };
    let report = RunReport {
        title: text.clone(),
        config: vec![(text.clone(), text.clone())],
        curve: curve.collect(),
        evaluations: vec![EvalRecord { step: 30, evaluation: found.clone() }],
        train: Some(found.clone()),
        held_out: Some(found.clone()),
        examples: vec![LatentExamples { latent: 12, firing_rate: 0.02, max_value: 4.0, examples: vec![example] }],
        notes: vec![text],
    };
    let html = page(&report);
    balanced(&html);
    for part in ["Explained variance", "Loss", "Dead latents", "Firing density", "Head usage", "Latent 12", "--v:0.500"]
    {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains(&format!("{:.4}", found.explained_variance.pooled)));
    // Nothing of the hostile text is markup, and nothing is loaded from anywhere.
    for part in
        ["<script", "<img", "<link", "<iframe", "onload='", "\u{202e}", "\0", "http://", "https://", "@import", "url("]
    {
        assert!(!html.contains(part), "{part}");
    }
    assert_eq!(html.matches("&lt;script&gt;").count(), 8, "title, heading, note, config twice, the example thrice");
    assert!(html.contains("default-src 'none'"));
    assert!(html.contains("prefers-color-scheme: dark"));
}

#[test]
fn a_run_that_has_hardly_begun_has_a_report_too() {
    let html = page(&RunReport { title: "nothing".to_owned(), ..RunReport::default() });
    balanced(&html);
    assert!(html.contains("<h1>nothing</h1>") && !html.contains("<section>"));

    let nan = StepRecord { step: 1, loss: f64::NAN, explained_variance: f64::NEG_INFINITY, ..StepRecord::default() };
    let text = serde_json::to_string(&nan).unwrap();
    let back: StepRecord = serde_json::from_str(&text).unwrap();
    assert!(back.loss.is_nan() && back.step == 1, "{text}");
    let html = page(&RunReport { curve: vec![nan], ..RunReport::default() });
    balanced(&html);
    assert!(!html.contains("NaN") && !html.contains("inf "));
}
