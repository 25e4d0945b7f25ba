//! The server's thread: starting it, and ending it.

use super::guard::{self, Guard};
use super::http::{Shared, serve};
use super::{ServeOptions, Source};
use crate::error::{Error, Result, Status};
use crate::float_env::FloatEnv;
use crate::threads::{SignalsBlocked, process_id};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread::JoinHandle;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

/// Bytes the kernel may hold for a client that does not read.
const SEND_BUFFER: u32 = 64 << 10;
/// Connections the kernel may hold until they are accepted: enough that a burst does not make others wait to try again.
const BACKLOG: u32 = 1024;
/// The thread's niceness: a page that somebody looks at must not take time from a model that is asked.
const NICENESS: libc::c_int = 10;

/// A running server. Dropping it stops it as [`Server::stop`] does.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    process: libc::pid_t,
}

impl Server {
    /// Listens, and starts the thread that answers.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`]: the address is no IP address with a port; it is beyond loopback and there is no token;
    /// the token is too short; a host is no name; `clients` is not from 1 to 1,024. [`Status::Io`]: the address cannot be
    /// listened at, say because the port is in use. [`Status::OutOfMemory`]: the system gives no thread.
    #[expect(clippy::needless_pass_by_value, reason = "the token in it is not needed any longer")]
    pub fn start(options: ServeOptions, source: Arc<dyn Source>) -> Result<Server> {
        if options.clients == 0 || options.clients > 1024 {
            return Err(Error::invalid(format!("clients = {}, expected 1 to 1,024", options.clients)));
        }
        let wanted = guard::address(&options)?;
        let guard = Guard::new(&options)?;
        let failed = |e: std::io::Error| {
            let advice = match e.kind() {
                std::io::ErrorKind::AddrInUse => ": another program has this port; choose another, or 0 for a free one",
                _ => "",
            };
            Error::new(Status::Io, format!("cannot listen at {wanted}: {e}{advice}"))
        };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let listener = listen(&runtime, wanted).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        let clients = options.clients;
        let body = move || run(&runtime, listener, stopped, Shared::new(source, guard, clients));
        let thread = {
            let _blocked = SignalsBlocked::enter();
            std::thread::Builder::new()
                .name("kronsae-serve".to_owned())
                .spawn(body)
                .map_err(|e| Error::new(Status::OutOfMemory, format!("cannot start the server's thread: {e}")))?
        };
        Ok(Server { address, stop: Some(stop), thread: Some(thread), process: process_id() })
    }

    /// Where it listens; with the port it got, if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections, waits for the thread to end (a call into the [`Source`] is waited for), and frees the port.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let (stop, thread) = (self.stop.take(), self.thread.take());
        if self.process != process_id() {
            // In a fork: there is no thread to wait for, and its event file is the parent's.
            std::mem::forget((stop, thread));
            return;
        }
        // Dropping the sender says it.
        drop(stop);
        if let Some(thread) = thread {
            // It panicked, if it did, with nobody to tell but the panic hook, which was told.
            let _ = thread.join();
        }
    }
}

fn listen(runtime: &Runtime, address: SocketAddr) -> std::io::Result<TcpListener> {
    let _reactor = runtime.enter();
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A port whose last connections linger in TIME_WAIT can be listened at again; one with a listener cannot.
    socket.set_reuseaddr(true)?;
    // Inherited by accepted sockets.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn run(runtime: &Runtime, listener: TcpListener, mut stopped: oneshot::Receiver<()>, shared: Shared) {
    // Numbers are written as they are, whatever the host has done to this thread's parent.
    let _env = FloatEnv::enter();
    lower_priority();
    let local = LocalSet::new();
    let mut serving = Box::pin(serve(listener, shared));
    local.block_on(
        runtime,
        std::future::poll_fn(move |cx| {
            let stop = Pin::new(&mut stopped).poll(cx).is_ready();
            if stop { Poll::Ready(()) } else { serving.as_mut().poll(cx) }
        }),
    );
    // Dropping the set drops every connection.
}

/// Of this thread alone. A system that refuses leaves it as it is.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    // SAFETY: plain system call; on Linux 0 means the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, NICENESS);
    }
}
