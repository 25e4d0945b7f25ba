//! A zip archive of a few files, stored as they are: what a NuGet package is. The same files give the same bytes.

/// 1 January 1980, the first date that the format knows.
const DATE: u16 = 1 << 5 | 1;
const STORED: u16 = 0;
/// The version of the format that has this much.
const VERSION: u16 = 10;

/// The archive of files, each a path with `/` between folders and its content.
///
/// # Errors
/// More than the format without its 64-bit extensions holds.
pub(super) fn archive(files: &[(String, Vec<u8>)]) -> Result<Vec<u8>, String> {
    let small = |n: usize| u32::try_from(n).map_err(|_| format!("{n} bytes are too many for a zip archive"));
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let (offset, size, checksum) = (small(out.len())?, small(content.len())?, crc32(content));
        let length = u16::try_from(name.len()).map_err(|_| format!("{name}: a name too long for a zip archive"))?;
        // What the entry and the directory have in common, from the needed version to the length of the extra field.
        let mut common = Vec::new();
        for word in [VERSION, 0, STORED, 0, DATE] {
            common.extend(word.to_le_bytes());
        }
        for word in [checksum, size, size] {
            common.extend(word.to_le_bytes());
        }
        common.extend(length.to_le_bytes());
        common.extend(0u16.to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(content);
        directory.extend(b"PK\x01\x02");
        directory.extend(VERSION.to_le_bytes());
        directory.extend(&common);
        // No comment, disk 0, no attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let count = u16::try_from(files.len()).map_err(|_| "too many files for a zip archive".to_owned())?;
    let (at, size) = (small(out.len())?, small(directory.len())?);
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend(size.to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend(0u16.to_le_bytes());
    Ok(out)
}

/// CRC-32 as in IEEE 802.3.
fn crc32(bytes: &[u8]) -> u32 {
    let mut table = [0u32; 256];
    for (index, entry) in (0u32..).zip(&mut table) {
        *entry = (0..8).fold(index, |c, _| if c & 1 == 1 { c >> 1 ^ 0xEDB8_8320 } else { c >> 1 });
    }
    !bytes.iter().fold(!0, |crc: u32, byte| crc >> 8 ^ table[(crc as u8 ^ byte) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_standard_example() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn the_end_counts_files() {
        let bytes = archive(&[("a/b".to_owned(), b"x".to_vec()), ("c".to_owned(), Vec::new())]).unwrap();
        assert!(bytes.starts_with(b"PK\x03\x04"));
        let end = &bytes[bytes.len() - 22..];
        assert!(end.starts_with(b"PK\x05\x06") && end[10..12] == [2, 0]);
        let at = u32::from_le_bytes(end[16..20].try_into().unwrap()) as usize;
        assert!(bytes[at..].starts_with(b"PK\x01\x02"));
    }
}
