//! Any text as a rules file: an error, or rules that run over tokens and emit what makes sense.

#![no_main]

#[path = "../../tests/common/rules.rs"]
mod any_rules;

use kronsae::Sae;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static MODEL: LazyLock<Sae> = LazyLock::new(any_rules::model);

fuzz_target!(|text: &str| {
    any_rules::run(&MODEL, text, text.len() as u64);
});
