//! What of a recorded interface another one breaks. A line is `KIND NAME REST`; see `describe`.

use std::collections::BTreeMap;

/// What differs.
#[derive(Default)]
pub(super) struct Difference {
    /// Promises that do not hold any more, each with what there is instead.
    pub(super) broken: Vec<String>,
    /// Lines that were not there.
    pub(super) added: Vec<String>,
}

/// Constants that say which header this is. A program built against another one does not rest on them.
const VERSIONS: [&str; 3] = ["KRONSAE_VERSION_MAJOR", "KRONSAE_VERSION_MINOR", "KRONSAE_VERSION_PATCH"];

pub(super) fn compare(recorded: &[String], found: &[String]) -> Difference {
    let (old, new) = (by_name(recorded), by_name(found));
    let mut difference = Difference::default();
    for (key, rest) in &old {
        let kept = match new.get(key) {
            None => removable(*key, rest),
            Some(now) => now == rest || may_become(*key, rest, now),
        };
        if !kept {
            let now = new.get(key).map_or("gone".to_owned(), |now| format!("now `{now}`"));
            difference.broken.push(format!("{} {} `{rest}`: {now}", key.0, key.1));
        }
    }
    for (key, rest) in &new {
        if old.contains_key(key) {
            continue;
        }
        if let Some(size) = grown_from(&old, *key).filter(|size| offset(rest).is_none_or(|at| at < *size)) {
            let place = format!("inside the {size} bytes that callers have; new fields go behind those");
            difference.broken.push(format!("{} {} `{rest}`: {place}", key.0, key.1));
        } else {
            difference.added.push(format!("{} {} {rest}", key.0, key.1));
        }
    }
    difference
}

type Lines<'a> = BTreeMap<(&'a str, &'a str), &'a str>;

fn by_name(lines: &[String]) -> Lines<'_> {
    lines
        .iter()
        .map(|line| {
            let mut words = line.splitn(3, ' ');
            let mut next = || words.next().unwrap_or_default();
            ((next(), next()), next())
        })
        .collect()
}

/// Only what never was promised.
fn removable(key: (&str, &str), rest: &str) -> bool {
    key.0 == "function" && rest.ends_with(" unstable")
}

/// Whether programs built against the one work with the other.
fn may_become(key: (&str, &str), old: &str, new: &str) -> bool {
    match key.0 {
        "constant" => VERSIONS.contains(&key.1),
        "function" if old.ends_with(" unstable") => true,
        "function" => old.strip_suffix(" stable").is_some_and(|same| new.strip_suffix(" deprecated") == Some(same)),
        // `size N align N grows`: it may, and keeps its alignment.
        "struct" => match (numbers(old), numbers(new)) {
            (Some((size, align)), Some((now, now_align))) => {
                old.ends_with(" grows") && new.ends_with(" grows") && now >= size && now_align == align
            }
            _ => false,
        },
        _ => false,
    }
}

fn numbers(rest: &str) -> Option<(u64, u64)> {
    let words: Vec<&str> = rest.split(' ').collect();
    Some((words.get(1)?.parse().ok()?, words.get(3)?.parse().ok()?))
}

/// The size that the struct of a new field had.
fn grown_from(old: &Lines<'_>, key: (&str, &str)) -> Option<u64> {
    let (kind, name) = key;
    let structure = (kind == "field").then(|| name.split('.').next())??;
    old.get(&("struct", structure)).and_then(|rest| Some(numbers(rest)?.0))
}

/// `offset N size N TYPE`
fn offset(rest: &str) -> Option<u64> {
    rest.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::compare;

    const RECORDED: [&str; 9] = [
        "constant KRONSAE_ABI_VERSION 0",
        "constant KRONSAE_VERSION_MINOR 1",
        "type kronsae_status int32_t",
        "struct kronsae_o size 8 align 4 grows",
        "field kronsae_o.struct_size offset 0 size 4 uint32_t",
        "field kronsae_o.n offset 4 size 4 uint32_t",
        "struct kronsae_pair size 8 align 4 fixed",
        "function kronsae_new kronsae_status (int32_t a) since 0.1.0 unstable",
        "function kronsae_old void (int32_t a) since 0.1.0 stable",
    ];

    /// Broken promises and additions when `from` becomes `to`; `None` stands for no line.
    fn change(from: Option<&str>, to: Option<&str>) -> (usize, usize) {
        let recorded: Vec<String> = RECORDED.map(str::to_owned).to_vec();
        let mut found = recorded.clone();
        if let Some(from) = from {
            let before = found.len();
            found.retain(|line| line != from);
            assert_eq!(found.len() + 1, before, "{from} is no line");
        }
        found.extend(to.map(str::to_owned));
        let difference = compare(&recorded, &found);
        (difference.broken.len(), difference.added.len())
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(change(None, None), (0, 0));
    }

    #[test]
    fn each_line_that_goes_is_noticed() {
        for line in RECORDED {
            let expected = usize::from(!line.ends_with("unstable"));
            assert_eq!(change(Some(line), None), (expected, 0), "{line}");
        }
    }

    #[test]
    fn each_line_that_changes_is_noticed() {
        for (from, to) in [
            (RECORDED[0], "constant KRONSAE_ABI_VERSION 1"),
            (RECORDED[2], "type kronsae_status int64_t"),
            (RECORDED[3], "struct kronsae_o size 4 align 4 grows"),
            (RECORDED[3], "struct kronsae_o size 16 align 8 grows"),
            (RECORDED[3], "struct kronsae_o size 8 align 4 fixed"),
            (RECORDED[5], "field kronsae_o.n offset 4 size 4 int32_t"),
            (RECORDED[5], "field kronsae_o.n offset 8 size 4 uint32_t"),
            (RECORDED[6], "struct kronsae_pair size 12 align 4 fixed"),
            (RECORDED[8], "function kronsae_old int32_t (int32_t a) since 0.1.0 stable"),
            (RECORDED[8], "function kronsae_old void (int64_t a) since 0.1.0 deprecated"),
            (RECORDED[8], "function kronsae_old void (int32_t a) since 0.2.0 stable"),
            (RECORDED[8], "function kronsae_old void (int32_t a) since 0.1.0 unstable"),
        ] {
            assert_eq!(change(Some(from), Some(to)), (1, 0), "{to}");
        }
    }

    #[test]
    fn what_is_appended_passes() {
        for line in [
            "constant KRONSAE_STATUS_NEW 12",
            "type kronsae_kind int32_t",
            "struct kronsae_more size 4 align 4 grows",
            "field kronsae_more.struct_size offset 0 size 4 uint32_t",
            "field kronsae_o.m offset 8 size 4 uint32_t",
            "function kronsae_added void (void) since 0.2.0 stable",
        ] {
            assert_eq!(change(None, Some(line)), (0, 1), "{line}");
        }
    }

    #[test]
    fn what_is_allowed_to_change_may() {
        for (from, to) in [
            (RECORDED[1], "constant KRONSAE_VERSION_MINOR 2"),
            (RECORDED[3], "struct kronsae_o size 16 align 4 grows"),
            (RECORDED[7], "function kronsae_new void (int64_t b) since 0.2.0 stable"),
            (RECORDED[8], "function kronsae_old void (int32_t a) since 0.1.0 deprecated"),
        ] {
            assert_eq!(change(Some(from), Some(to)), (0, 0), "{to}");
        }
    }

    #[test]
    fn a_field_in_bytes_that_callers_have_is_noticed() {
        assert_eq!(change(None, Some("field kronsae_o.inside offset 4 size 2 uint16_t")), (1, 0));
        assert_eq!(change(None, Some("field kronsae_pair.x offset 0 size 4 float")), (1, 0));
    }
}
