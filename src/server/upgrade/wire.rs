//! The messages of an upgrade: frames of bytes, and descriptors beside one byte.

use super::UpgradeError;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Most descriptors in one message (Linux, `SCM_MAX_FD`).
const MOST_DESCRIPTORS: usize = 253;
/// Largest frame in bytes, far above the table of `programs.max` at its default.
const LARGEST_FRAME: u64 = 1 << 30;

/// Makes sure of the other process: only the same user, or root, may be given sockets, or give them.
pub(super) fn check_peer(stream: &UnixStream) -> Result<(), UpgradeError> {
    let (own, other) = (rustix::process::geteuid().as_raw(), stream.peer_cred()?.uid());
    (other == own || other == 0).then_some(()).ok_or(UpgradeError::Stranger)
}

pub(super) async fn send_descriptors(stream: &UnixStream, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let send = || {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::Error::other(format!("more than {MOST_DESCRIPTORS} listeners")));
        }
        rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(b"F")], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    };
    stream.async_io(Interest::WRITABLE, send).await
}

pub(super) async fn receive_descriptors(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let receive = || {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
        if got.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let rights = |message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        };
        Ok(control.drain().filter_map(rights).flatten().collect())
    };
    stream.async_io(Interest::READABLE, receive).await
}

pub(super) async fn write_frame(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_u64(bytes.len() as u64).await?;
    stream.write_all(bytes).await
}

pub(super) async fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u64().await?;
    if length > LARGEST_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 == length { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
