//! TensorBoard event files: scalars by step.
//!
//! A file is a sequence of records: the length (u64), its masked CRC-32C, the bytes, their masked CRC-32C, all
//! little-endian. The bytes are an `Event` message in protobuf encoding, of which five fields are needed; they are
//! written out here, where each can be seen.
//!
//! Every run of a training appends a file of its own to the folder, and TensorBoard reads them as one: steps that a
//! resumed run repeats appear in both.

use kronsae::{Error, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one event file.
pub struct EventWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl EventWriter {
    /// Starts a new file `events.out.tfevents.<seconds>.<host>` in `dir`, which is created where it does not exist. Existing
    /// files are never touched.
    ///
    /// # Errors
    /// [`kronsae::Status::Io`].
    pub fn create(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(|e| Error::io("create", &dir.display().to_string(), &e))?;
        let seconds = now() as u64;
        let host = host();
        for attempt in 0.. {
            let suffix = if attempt == 0 { String::new() } else { format!(".{attempt}") };
            let path = dir.join(format!("events.out.tfevents.{seconds:010}.{host}{suffix}"));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut writer = EventWriter { path, out: BufWriter::new(file) };
                    writer.record(&Message::new().double(1, now()).bytes(3, b"brain.Event:2").0)?;
                    writer.flush()?;
                    return Ok(writer);
                }
                // Two runs within a second.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(e) => return Err(Error::io("create", &path.display().to_string(), &e)),
            }
        }
        unreachable!("the loop returns")
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a value, rounded to f32, under `tag` at `step`.
    ///
    /// # Errors
    /// [`kronsae::Status::Io`].
    pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        let value = Message::new().bytes(1, tag.as_bytes()).float(2, value as f32);
        let summary = Message::new().bytes(1, &value.0);
        self.record(&Message::new().double(1, now()).varint(2, step).bytes(5, &summary.0).0)
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// [`kronsae::Status::Io`].
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(|e| Error::io("write", &self.path.display().to_string(), &e))
    }

    fn record(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.out.write_all(&framed(bytes));
        written.map_err(|e| Error::io("write", &self.path.display().to_string(), &e))
    }
}

/// A record around `bytes`.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(bytes.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(bytes);
    out.extend(masked_crc(bytes).to_le_bytes());
    out
}

/// A checksum of data that itself holds checksums would be weak; the format rotates it and adds a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// A protobuf message as it is built: fields in the order written.
struct Message(Vec<u8>);

impl Message {
    fn new() -> Self {
        Message(Vec::new())
    }

    fn raw_varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn key(self, field: u64, wire_type: u64) -> Self {
        self.raw_varint(field << 3 | wire_type)
    }

    fn varint(self, field: u64, value: u64) -> Self {
        self.key(field, 0).raw_varint(value)
    }

    fn double(self, field: u64, value: f64) -> Self {
        let mut out = self.key(field, 1);
        out.0.extend(value.to_le_bytes());
        out
    }

    fn bytes(self, field: u64, value: &[u8]) -> Self {
        let mut out = self.key(field, 2).raw_varint(value.len() as u64);
        out.0.extend(value);
        out
    }

    fn float(self, field: u64, value: f32) -> Self {
        let mut out = self.key(field, 5);
        out.0.extend(value.to_le_bytes());
        out
    }
}

/// Seconds since 1970; 0 on a machine whose clock stands before.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// The machine's name, as far as it can stand in a file name.
fn host() -> String {
    let mut name = [0_u8; 256];
    // SAFETY: the buffer is writable for the length given; a name that does not fit is cut, with or without a NUL.
    let status = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    let text = String::from_utf8_lossy(&name[..end]);
    let safe: String = text.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    if status != 0 || safe.is_empty() { "localhost".to_owned() } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_frames() {
        // The check value of CRC-32C, and what its mask makes of it.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xC78A_B0E5);
        let record = framed(b"abc");
        assert_eq!((record.len(), &record[..8], &record[12..15]), (19, &[3, 0, 0, 0, 0, 0, 0, 0][..], &b"abc"[..]));
    }

    #[test]
    fn messages_are_protobuf() {
        let message = Message::new().varint(2, 300).float(2, 1.0).bytes(5, b"x").double(1, 0.5);
        let expected = [0x10, 0xAC, 0x02, 0x15, 0, 0, 0x80, 0x3F, 0x2A, 1, b'x', 0x09, 0, 0, 0, 0, 0, 0, 0xE0, 0x3F];
        assert_eq!(message.0, expected);
    }

    #[test]
    fn files_hold_whole_records_and_never_replace_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new/events");
        let mut writers = [EventWriter::create(&dir).unwrap(), EventWriter::create(&dir).unwrap()];
        assert_ne!(writers[0].path(), writers[1].path());
        for writer in &mut writers {
            writer.scalar("loss", 7, 0.25).unwrap();
            writer.scalar("held_out/explained_variance", u64::MAX, f64::NAN).unwrap();
            writer.flush().unwrap();
            assert!(writer.path().file_name().unwrap().to_str().unwrap().starts_with("events.out.tfevents."));
            let bytes = std::fs::read(writer.path()).unwrap();
            let mut records = Vec::new();
            let mut at = 0;
            while at < bytes.len() {
                let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
                let record = &bytes[at..at + length + 16];
                assert_eq!(record, framed(&record[12..12 + length]));
                records.push(record[12..12 + length].to_vec());
                at += length + 16;
            }
            assert_eq!(records.len(), 3);
            assert!(records[0].ends_with(b"\x1a\x0dbrain.Event:2"));
            // step 7; summary { value { tag "loss", simple_value 0.25 } }
            assert!(records[1].ends_with(b"\x10\x07\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\x80\x3e"), "{:x?}", records[1]);
        }
    }
}
