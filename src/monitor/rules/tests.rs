//! Files that are right and, above all, files that are wrong.

use super::*;
use crate::monitor::TokenTag;
use crate::sae::{Config, Encoder, ModelWriter, Selection, Which};
use crate::{Dtype, Sae, Status};

/// A dense model of four latents, calibrated at the levels given with the quantiles given (`[4, levels]`).
pub(in crate::monitor) fn model(levels: &str, quantiles: Option<&[f32]>) -> Sae {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut config = Config::new(Encoder::Dense { latents: 4 }, 2, Selection::TopK(4), 1.0).unwrap();
    if !levels.is_empty() {
        let about = format!("{{\"levels\": {levels}}}");
        config.json.insert("calibration".into(), serde_json::from_str(&about).unwrap());
    }
    let weights = [1.0_f32; 8];
    ModelWriter {
        config: &config,
        encoder_weight: ModelWriter::rows(Which::Encoder, &weights, [4, 2], 2, Dtype::F32),
        encoder_bias: &[0.0; 4],
        encoder_threshold: None,
        decoder_weight: ModelWriter::rows(Which::Decoder, &weights, [4, 2], 2, Dtype::F32),
        decoder_bias: &[0.0; 2],
        calibration: quantiles.map(|q| (&[0.1; 4][..], &[1.0; 4][..], q)),
    }
    .write(&path)
    .unwrap();
    Sae::open(&path).unwrap()
}

fn calibrated() -> Sae {
    let nan = f32::NAN;
    model("[0.5, 0.99]", Some(&[1.0, 2.0, 1.5, 3.0, nan, nan, 0.5, 9.0]))
}

fn compiled(text: &str) -> SiteRules {
    SiteRules::compile(&Rules::parse(text).unwrap(), "here", &calibrated()).unwrap()
}

/// Rules that hold on a token with these latents.
fn holding(rules: &SiteRules, flags: u32, latents: &[(u32, f32)]) -> Vec<usize> {
    let mut touched = Touched::new(rules).unwrap();
    let (indices, values): (Vec<u32>, Vec<f32>) = latents.iter().copied().unzip();
    let tag = TokenTag { flags, ..TokenTag::default() };
    let run = |touched: &mut Touched| {
        rules.evaluate(&tag, &indices, &values, touched);
        let holding = (0..rules.len()).filter(|rule| touched.holding[rule / 64] >> (rule % 64) & 1 == 1).collect();
        SiteRules::forget(touched);
        holding
    };
    let first: Vec<usize> = run(&mut touched);
    assert_eq!(first, run(&mut touched), "a token left something behind");
    first
}

#[test]
fn conditions_hold_when_they_should() {
    let rules = compiled(
        r#"
        rule = [
            { name = "value", when = { latent = 1, above = 2 } },
            { name = "quantile", when = { latent = 1, above_quantile = 0.99 } },
            { name = "any", when = { any = [{ latent = 0, above = 1.0 }, { latent = 3, above = 1.0 }] } },
            { name = "all", when = { all = [{ latent = 0, above = 1.0 }, { latent = 3, above = 1.0 }] } },
            { name = "sum", when = { sum = [{ latent = 0 }, { latent = 1, weight = 2.0 }, { latent = 2, weight = -1.0 }],
              above = 5.0 } },
            { name = "nested", when = { all = [{ latent = 2, above = 0.0 },
              { any = [{ latent = 0, above = 7.0 }, { latent = 1, above = 7.0 }] }] } },
            { name = "prompt", tokens = "prompt", when = { latent = 2, above = 0.0 } },
            { name = "generated", tokens = "generated", when = { latent = 2, above = 0.0 } },
            { name = "elsewhere", sites = ["there"], when = { latent = 9999, above = 0.0 } },
        ]"#,
    );
    let names: Vec<_> = rules.names().map(|(name, _)| name.as_ref().to_owned()).collect();
    assert_eq!(names, ["value", "quantile", "any", "all", "sum", "nested", "prompt", "generated"]);
    assert_eq!(rules.latents(), [0, 1, 2, 3]);
    assert_eq!(holding(&rules, 0, &[]), [] as [usize; 0]);
    assert_eq!(holding(&rules, 0, &[(1, 2.0)]), [] as [usize; 0], "above is strictly above");
    assert_eq!(holding(&rules, 0, &[(1, 2.1)]), [0]);
    assert_eq!(holding(&rules, 0, &[(1, 3.1)]), [0, 1, 4]);
    assert_eq!(holding(&rules, 0, &[(3, 1.5)]), [2]);
    assert_eq!(holding(&rules, 0, &[(3, 1.5), (0, 1.25)]), [2, 3]);
    assert_eq!(holding(&rules, 1, &[(2, 0.5), (1, 8.0), (0, 1.0)]), [0, 1, 4, 5, 6]);
    assert_eq!(holding(&rules, 2, &[(2, 4.0), (1, 4.0), (0, 1.0)]), [0, 1, 6], "1 + 8 - 4 is not above 5");
    assert_eq!(holding(&rules, 0, &[(2, 0.5)]), [7]);
    assert_eq!(holding(&rules, 0, &[(7, 100.0), (3_000_000_000, 1.0)]), [] as [usize; 0]);
}

#[test]
fn latents_of_a_match_stand_in_the_order_of_the_rule() {
    let when = "{ any = [{ latent = 3, above = 1 }, { latent = 0, above = 1 }, { latent = 3, above = 9 }, \
                { latent = 1, above = 1 }] }";
    let rules = compiled(&format!("[[rule]]\nname = \"r\"\nwhen = {when}"));
    let mut touched = Touched::new(&rules).unwrap();
    rules.evaluate(&TokenTag::default(), &[1, 3], &[5.0, 2.0], &mut touched);
    let mut out = Vec::new();
    rules.latents_of(0, &touched, &mut out);
    assert_eq!(out.iter().map(|l| (l.latent, l.value)).collect::<Vec<_>>(), [(3, 2.0), (0, 0.0), (1, 5.0)]);
}

#[test]
fn many_rules_and_latents_are_all_found() {
    let mut text = String::new();
    for rule in 0..300 {
        text += &format!("[[rule]]\nname = \"r{rule}\"\nwhen = {{ latent = {}, above = {}.5 }}\n", rule % 4, rule / 4);
    }
    let rules = compiled(&text);
    for latent in 0..4_u32 {
        let expected: Vec<_> = (0..300).filter(|rule| rule % 4 == latent as usize && rule / 4 <= 41).collect();
        assert_eq!(holding(&rules, 0, &[(latent, 42.0)]), expected);
    }
}

#[test]
fn defaults_and_severities() {
    let rules = Rules::parse("").unwrap();
    assert!(rules.is_empty() && SiteRules::empty().is_empty());
    assert!(SiteRules::compile(&rules, "here", &calibrated()).unwrap().is_empty());
    let rules = Rules::parse(
        "\u{FEFF}[[rule]]\nname = \"a-B_1.c\"\nwhen = { latent = 0, above = 0 }\r\n\
         [[rule]]\nname = \"b\"\nseverity = \"critical\"\ndescription = \"d\"\nsites = [\"x\", \"here\"]\n\
         when = { latent = 0, above = 0 }\nwindow = { at_least = 2, of_last = 2 }\n\
         cooldown = { tokens = 3, seconds = 0.5 }",
    )
    .unwrap();
    assert_eq!(
        rules.sites().map(|(site, rule)| (site, rule.as_ref())).collect::<Vec<_>>(),
        [("x", "b"), ("here", "b")]
    );
    let site = SiteRules::compile(&rules, "here", &calibrated()).unwrap();
    let severities: Vec<_> = site.names().map(|(_, severity)| severity).collect();
    assert_eq!(severities, [Severity::Info, Severity::Critical]);
    assert_eq!((site.description(0).as_ref(), site.description(1).as_ref()), ("", "d"));
    let [first, second] = site.rules() else { panic!("two rules") };
    assert_eq!((first.at_least, first.of_last, first.cooldown_tokens, first.cooldown_nanos), (1, 1, 0, 0));
    assert_eq!(
        (second.at_least, second.of_last, second.cooldown_tokens, second.cooldown_nanos),
        (2, 2, 3, 500_000_000)
    );
}

/// A rule on lines 3 to 5, after a sound one, with `body` from line 5 on.
fn with(body: &str) -> String {
    format!("[[rule]]\nname = \"first\"\nwhen = {{latent=0, above=1}}\n[[rule]]\nname = \"bad\"\n{body}\n")
}

#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let error = Rules::parse(text).map(|_| ()).expect_err(text);
    assert_eq!(error.status(), Status::Format);
    for word in words {
        assert!(error.message().contains(word), "`{word}` is not in: {error}\nof:\n{text}");
    }
}

#[test]
fn bad_files_are_refused_with_rule_line_and_reason() {
    let when = "when = {latent=0, above=1}";
    for (body, words) in [
        // TOML and its form
        ("when = {latent=0, above=", &["line 6"][..]),
        ("when = {latent=\"a\", above=1}", &["line 6", "`bad`", "string"]),
        ("when = {latent=-1, above=1}", &["line 6", "`bad`", "-1", "u32"]),
        ("when = {latent=4294967296, above=1}", &["line 6", "`bad`", "4294967296"]),
        ("when = {latent=0, over=1}", &["line 6", "`bad`", "unknown field `over`", "`above`"]),
        ("severity = \"fatal\"\nwhen = {latent=0, above=1}", &["line 6", "`bad`", "`fatal`", "`critical`"]),
        ("tokens = \"some\"\nwhen = {latent=0, above=1}", &["line 6", "`bad`", "`some`", "`generated`"]),
        ("treshold = 1", &["line 6", "`bad`", "unknown field `treshold`", "`when`"]),
        ("description = \"no condition\"", &["`bad`", "missing field `when`"]),
        ("when = {latent=0, above=\"1\"}", &["line 6", "`bad`", "string \"1\""]),
        // Conditions
        ("when = {}", &["line 6", "`bad`", "no key", "expected `latent`"]),
        ("when = {latent=0}", &["line 6", "`bad`", "`latent`", "expected"]),
        ("when = {latent=0, above=1, above_quantile=0.5}", &["line 6", "`bad`", "`above_quantile`", "expected"]),
        ("when = {latent=0, above=1, any=[{latent=0, above=1}]}", &["line 6", "`bad`", "`any`", "expected"]),
        ("when = {any=[]}", &["line 6", "`bad`", "`any` is empty"]),
        ("when = {all=[]}", &["line 6", "`bad`", "`all` is empty"]),
        ("when = {sum=[], above=1}", &["line 6", "`bad`", "`sum` is empty"]),
        ("when = {sum=[{latent=0}]}", &["line 6", "`bad`", "`sum`", "`sum` with `above`"]),
        ("when = {sum=[{latent=0}, {latent=0}], above=1}", &["line 6", "`bad`", "latent 0", "twice"]),
        ("when = {sum=[{latent=0, weight=nan}], above=1}", &["line 6", "`bad`", "latent 0", "NaN"]),
        ("when = {sum=[{latent=0, weight=0}], above=1}", &["line 6", "`bad`", "latent 0", "is 0"]),
        ("when = {sum=[{latent=0, weight=-1}], above=1}", &["line 6", "`bad`", "negative", "never"]),
        ("when = {sum=[{latent=0}], above=-1}", &["line 6", "`bad`", "above is -1", "at least 0"]),
        ("when = {latent=0, above=nan}", &["line 6", "`bad`", "above is NaN"]),
        ("when = {latent=0, above=inf}", &["line 6", "`bad`", "above is inf"]),
        ("when = {latent=0, above=-0.5}", &["line 6", "`bad`", "above is -0.5", "at least 0"]),
        ("when = {latent=0, above_quantile=1.0}", &["line 6", "`bad`", "above_quantile is 1", "between 0 and 1"]),
        ("when = {latent=0, above_quantile=99}", &["line 6", "`bad`", "99"]),
        ("when = {latent=0, above_quantile=nan}", &["line 6", "`bad`", "NaN"]),
        // Windows and cooldowns
        (&format!("{when}\nwindow = {{at_least=3, of_last=2}}"), &["line 7", "`bad`", "at least 3 of the last 2"]),
        (&format!("{when}\nwindow = {{at_least=0, of_last=2}}"), &["line 7", "`bad`", "at_least is 0", "1 to"]),
        (&format!("{when}\nwindow = {{at_least=1, of_last=0}}"), &["line 7", "`bad`", "of_last is 0"]),
        (&format!("{when}\nwindow = {{at_least=1, of_last=1025}}"), &["line 7", "`bad`", "1025", "1024"]),
        (&format!("{when}\nwindow = {{at_least=-1, of_last=2}}"), &["line 7", "`bad`", "-1"]),
        (&format!("{when}\nwindow = {{at_least=1}}"), &["line 7", "`bad`", "missing field `of_last`"]),
        (&format!("{when}\nwindow = {{at_least=1.5, of_last=2}}"), &["line 7", "`bad`", "1.5"]),
        (&format!("{when}\ncooldown = {{}}"), &["line 7", "`bad`", "neither"]),
        (&format!("{when}\ncooldown = {{tokens=0}}"), &["line 7", "`bad`", "cooldown.tokens is 0"]),
        (&format!("{when}\ncooldown = {{seconds=-1}}"), &["line 7", "`bad`", "cooldown.seconds is -1"]),
        (&format!("{when}\ncooldown = {{seconds=nan}}"), &["line 7", "`bad`", "NaN"]),
        (&format!("{when}\nsites = []"), &["line 7", "`bad`", "empty"]),
    ] {
        refused(&with(body), words);
    }
    refused("[[rules]]\nname = \"a\"", &["line 1", "unknown field `rules`", "`rule`"]);
    refused("[[rule]]\nwhen = {latent=0, above=1}", &["rule number 1", "missing field `name`"]);
    refused("[rule]\nname = \"a\"\nwhen = {latent=0, above=1}", &["line 1", "sequence"]);
    refused("rule = 3", &["line 1", "integer `3`"]);
    refused("\u{0}", &["line 1"]);
    for name in ["", "a b", "a\\n", "\u{e9}", &"x".repeat(129)] {
        refused(&format!("\n[[rule]]\nname = \"{name}\"\n{when}"), &["line 3", "the name is", "1 to 128"]);
    }
    let twice = format!("{}{}", with(when), "[[rule]]\nname = \"first\"\nwhen = {latent=1, above=1}");
    refused(&twice, &["line 8", "`first`", "line 2", "unique"]);
    let deep = format!("when = {}{{latent=0, above=1}}{}", "{any=[".repeat(9), "]}".repeat(9));
    refused(&with(&deep), &["line 6", "`bad`", "nested more than 8"]);
    Rules::parse(&with(&format!("when = {}{{latent=0, above=1}}{}", "{any=[".repeat(8), "]}".repeat(8)))).unwrap();
    let wide = vec!["{latent=0, above=1}"; 4097].join(",");
    refused(&with(&format!("when = {{any=[{wide}]}}")), &["line 6", "`bad`", "more than 4096 latents"]);
    let wide = vec!["{latent=0}"; 4097].join(",");
    refused(&with(&format!("when = {{sum=[{wide}], above=1}}")), &["line 6", "`bad`", "more than 4096 latents"]);
    refused(&"#".repeat(file::MOST_BYTES + 1), &["at most"]);
    refused(&with(&"[".repeat(100_000)), &["line 6"]);
}

#[track_caller]
fn unfit(sae: &Sae, when: &str, words: &[&str]) {
    let rules = Rules::parse(&with(&format!("when = {when}"))).unwrap();
    let error = SiteRules::compile(&rules, "here", sae).map(|_| ()).expect_err(when);
    assert_eq!(error.status(), Status::InvalidArgument);
    for word in ["line 6", "rule `bad`", "site `here`"].iter().chain(words) {
        assert!(error.message().contains(word), "`{word}` is not in: {error}");
    }
}

#[test]
fn rules_that_do_not_fit_the_model() {
    let sae = calibrated();
    unfit(&sae, "{latent=4, above=1}", &["latent 4", "4 latents, 0 to 3"]);
    unfit(&sae, "{latent=4294967295, above=1}", &["latent 4294967295"]);
    unfit(&sae, "{any=[{latent=0, above=1},{latent=4, above=1}]}", &["latent 4"]);
    unfit(&sae, "{all=[{latent=0, above=1}, {latent=9, above=1}]}", &["latent 9"]);
    unfit(&sae, "{sum=[{latent=0},{latent=5}], above=1}", &["latent 5"]);
    unfit(&sae, "{latent=4, above_quantile=0.5}", &["latent 4", "4 latents"]);
    unfit(&sae, "{latent=0, above_quantile=0.9}", &["0.9", "[0.5, 0.99]"]);
    unfit(&sae, "{latent=2, above_quantile=0.5}", &["latent 2", "never active", "`above`"]);
    let quantile = "{latent=0, above_quantile=0.5}";
    unfit(&model("", None), quantile, &["no calibrated quantiles", "kronsae calibrate"]);
    unfit(&model("[0.5]", None), quantile, &["no calibrated quantiles"]);
    unfit(&model("", Some(&[1.0; 4])), quantile, &["1 levels", "none"]);
    unfit(&model("[0.5, 0.9]", Some(&[1.0; 4])), quantile, &["1 levels", "[0.5, 0.9]"]);
    unfit(&model("[\"0.5\"]", Some(&[1.0; 4])), quantile, &["1 levels", "none"]);
    unfit(&model("[0.5]", Some(&[f32::INFINITY; 4])), quantile, &["is inf"]);
    unfit(&model("[0.5]", Some(&[-1.0; 4])), quantile, &["is -1"]);
    // What is not for this site need not fit its model.
    let rules = Rules::parse(&with("sites = [\"there\"]\nwhen = {latent=4, above=1}")).unwrap();
    assert_eq!(SiteRules::compile(&rules, "here", &sae).unwrap().len(), 1);
    assert!(SiteRules::compile(&rules, "there", &sae).is_err());
}

#[test]
fn files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rules.toml");
    std::fs::write(&path, with("when = {latent=0, above=1}")).unwrap();
    assert_eq!(Rules::read(&path).unwrap().len(), 2);
    std::fs::write(&path, with("when = {latent=0, above=-1}")).unwrap();
    let error = Rules::read(&path).unwrap_err();
    assert!(error.message().contains("rules.toml: line 6, rule `bad`: above is -1"), "{error}");
    std::fs::write(&path, b"a\n\xFF").unwrap();
    assert!(Rules::read(&path).unwrap_err().message().contains("rules.toml: line 2: not UTF-8"));
    std::fs::write(&path, vec![b'#'; file::MOST_BYTES + 1]).unwrap();
    assert_eq!(Rules::read(&path).unwrap_err().status(), Status::Format);
    assert_eq!(Rules::read(folder.path()).unwrap_err().status(), Status::Io);
    assert_eq!(Rules::read(&folder.path().join("none")).unwrap_err().status(), Status::Io);
}
