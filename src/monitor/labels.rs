//! What people call latents: a text file of `index <tab> text` lines.

use crate::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;

/// The longest file.
const MOST_BYTES: usize = 256 << 20;
/// The longest label, in bytes: it goes into metrics and pages.
const MOST_TEXT: usize = 512;

/// Labels of latents. Immutable.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    /// Ascending by latent.
    labels: Arc<[(u32, Arc<str>)]>,
}

impl Labels {
    /// The labels of a text: a line for each, of the latent's index, one tab, and the label. Empty lines and lines that
    /// start with `#` are left out; a line may end in CR LF.
    ///
    /// # Errors
    /// [`crate::Status::Format`], with the line: no tab, an index that is no whole number, a latent twice, a label that
    /// is empty, longer than 512 bytes or holds control characters.
    pub fn parse(text: &str) -> Result<Self> {
        let mut labels: Vec<(u32, usize, Arc<str>)> = Vec::new();
        for (number, line) in text.strip_prefix('\u{FEFF}').unwrap_or(text).split('\n').enumerate() {
            let line = line.strip_suffix('\r').unwrap_or(line);
            let bad = |what: String| Error::format(format!("line {}: {what}", number + 1));
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let shown = || line.chars().take(60).collect::<String>();
            let Some((index, label)) = line.split_once('\t') else {
                return Err(bad(format!("{:?}, expected a latent's index, a tab, and its label", shown())));
            };
            // `parse` alone would take a plus sign.
            let digits = !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit());
            let Some(latent) = index.parse::<u32>().ok().filter(|_| digits) else {
                let found: String = index.chars().take(60).collect();
                return Err(bad(format!("the index is {found:?}, expected a whole number below 2^32")));
            };
            let label = label.trim_matches(' ');
            if label.is_empty() || label.len() > MOST_TEXT {
                return Err(bad(format!(
                    "the label of latent {latent} has {} bytes, expected 1 to {MOST_TEXT}",
                    label.len()
                )));
            }
            if let Some(c) = label.chars().find(|c| c.is_control()) {
                return Err(bad(format!("the label of latent {latent} holds {c:?}, a control character")));
            }
            labels.push((latent, number + 1, label.into()));
        }
        labels.sort_by_key(|(latent, ..)| *latent);
        if let Some([(latent, first, _), (_, second, _)]) = labels.array_windows().find(|[a, b]| a.0 == b.0) {
            return Err(Error::format(format!("line {second}: latent {latent} has a label already, in line {first}")));
        }
        Ok(Labels { labels: labels.into_iter().map(|(latent, _, label)| (latent, label)).collect() })
    }

    /// The labels of a file.
    ///
    /// # Errors
    /// As [`Labels::parse`], naming the file; [`crate::Status::Io`] if it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = super::text_file::read(path, MOST_BYTES)?;
        Labels::parse(&text).map_err(|e| e.within(&path.display().to_string()))
    }

    /// A latent's label.
    #[must_use]
    pub fn get(&self, latent: u32) -> Option<&Arc<str>> {
        let at = self.labels.binary_search_by_key(&latent, |(latent, _)| *latent).ok()?;
        Some(&self.labels[at].1)
    }

    /// How many latents have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Checks that the labels are for a model of `latents` latents.
    ///
    /// # Errors
    /// [`crate::Status::InvalidArgument`] naming the latent that it does not have.
    pub fn fit(&self, latents: usize) -> Result<()> {
        match self.labels.last() {
            Some((latent, label)) if *latent as usize >= latents => Err(Error::invalid(format!(
                "the label {label:?} is of latent {latent}; the model has {latents} latents"
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    #[test]
    fn lines_become_labels() {
        let labels = Labels::parse("\u{FEFF}# of layer 15\n7\tcode, Python\r\n\n0\t a\u{304B}b \n").unwrap();
        assert_eq!((labels.len(), labels.is_empty()), (2, false));
        assert_eq!(labels.get(7).unwrap().as_ref(), "code, Python");
        assert_eq!(labels.get(0).unwrap().as_ref(), "a\u{304B}b");
        assert!(labels.get(1).is_none() && labels.get(u32::MAX).is_none());
        labels.fit(8).unwrap();
        let error = labels.fit(7).unwrap_err();
        assert!(error.message().contains("latent 7") && error.message().contains("7 latents"), "{error}");
        assert!(Labels::parse("").unwrap().is_empty());
    }

    #[test]
    fn bad_lines_are_named() {
        let long = format!("1\t{}", "x".repeat(513));
        for (text, words) in [
            ("1\ta\n2 b\n", ["line 2", "tab"]),
            ("1\ta\n\nx\tb", ["line 3", "whole number"]),
            ("-1\ta", ["line 1", "\"-1\""]),
            ("+1\ta", ["line 1", "\"+1\""]),
            ("\ta", ["line 1", "whole number"]),
            ("4294967296\ta", ["line 1", "4294967296"]),
            ("1\ta\n2\tb\n1\tc", ["line 3", "in line 1"]),
            ("1\t", ["line 1", "0 bytes"]),
            ("1\t  ", ["line 1", "0 bytes"]),
            ("1\ta\tb", ["line 1", "control"]),
            ("1\ta\rb", ["line 1", "control"]),
            (&long, ["line 1", "513"]),
        ] {
            let error = Labels::parse(text).unwrap_err();
            assert_eq!(error.status(), Status::Format, "{text:?}");
            assert!(words.iter().all(|word| error.message().contains(word)), "{text:?}: {error}");
        }
    }

    #[test]
    fn files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.tsv");
        std::fs::write(&path, "3\tnumbers\n").unwrap();
        assert_eq!(Labels::read(&path).unwrap().get(3).unwrap().as_ref(), "numbers");
        std::fs::write(&path, b"3\tnumbers\n4\t\xFF\n").unwrap();
        let error = Labels::read(&path).unwrap_err();
        assert!(error.message().contains("labels.tsv: line 2: not UTF-8"), "{error}");
        assert_eq!(Labels::read(folder.path()).unwrap_err().status(), Status::Io);
        assert_eq!(Labels::read(&folder.path().join("none")).unwrap_err().status(), Status::Io);
    }
}
