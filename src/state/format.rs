//! A snapshot as bytes: a header that tells of damage, and a compact body.
//!
//! `MAGIC`, then version (4 bytes), length of the body (8) and its XXH3 checksum (8), little endian; then the body in
//! postcard's wire format.

use super::Snapshot;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 8] = b"TGSTATE\n";
/// Version of the layout, to be raised with every change of what a [`Snapshot`] is made of.
const VERSION: u32 = 2;
const HEADER: usize = 28;

/// Why bytes are not a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("it is not a state of Thundergate")]
    Foreign,
    #[error("it is of version {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("it should be {expected} bytes long and is {found}")]
    Length { expected: u64, found: u64 },
    #[error("its checksum is wrong")]
    Checksum,
    #[error("its content makes no sense: {0}")]
    Content(String),
}

/// The snapshot as bytes.
///
/// # Panics
/// Never: memory takes any length, and all lengths in a snapshot are known beforehand.
#[must_use]
pub fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let bytes = postcard::to_extend(snapshot, vec![0; HEADER]);
    sealed(bytes.expect("memory takes any length"))
}

/// Fills in the header before the body.
pub(super) fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let (header, body) = bytes.split_at_mut(HEADER);
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..20].copy_from_slice(&(body.len() as u64).to_le_bytes());
    header[20..].copy_from_slice(&xxh3_64(body).to_le_bytes());
    bytes
}

/// Reads what [`encode`] wrote. Whatever the bytes are, it does not panic, and takes no more memory than some ten
/// times theirs.
///
/// # Errors
/// What is wrong with them.
pub fn decode(bytes: &[u8]) -> Result<Snapshot, Damage> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(Damage::Foreign)?;
    if magic != MAGIC {
        return Err(Damage::Foreign);
    }
    let found = bytes.len() as u64;
    let cut = Damage::Length { expected: HEADER as u64, found };
    let (version, rest) = rest.split_first_chunk().ok_or_else(|| cut.clone())?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let (length, rest) = rest.split_first_chunk().ok_or_else(|| cut.clone())?;
    let (checksum, body) = rest.split_first_chunk().ok_or(cut)?;
    let length = u64::from_le_bytes(*length);
    if length != body.len() as u64 {
        return Err(Damage::Length { expected: length.saturating_add(HEADER as u64), found });
    }
    if u64::from_le_bytes(*checksum) != xxh3_64(body) {
        return Err(Damage::Checksum);
    }
    let content = |error: postcard::Error| Damage::Content(error.to_string());
    let (snapshot, rest) = postcard::take_from_bytes(body).map_err(content)?;
    if !rest.is_empty() {
        return Err(Damage::Content(format!("{} bytes are left over", rest.len())));
    }
    Ok(snapshot)
}
