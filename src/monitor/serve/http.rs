//! Connections: how many, for how long, and what they are answered.

use super::Source;
use super::guard::{Guard, Refused};
use super::page::Page;
use super::patience::Patient;
use super::stream::EventStream;
use crate::monitor::metrics::{self, MetricsForm};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// How long a client may take to say what it wants.
const ASKING: Duration = Duration::from_secs(5);
/// How long a client may leave unread what was sent.
const READING: Duration = Duration::from_secs(10);
/// Connections besides those that follow events.
const SHORT_CONNECTIONS: usize = 32;
/// Most bytes of a request's head, and of an answer that waits in a connection's buffer before more is made.
const BUFFER: usize = 16 << 10;
/// A snapshot is made no more often than this.
const FRESH: Duration = Duration::from_millis(50);

/// What all connections share. Lives on the server's thread.
pub(super) struct Shared {
    pub(super) source: Arc<dyn Source>,
    guard: Guard,
    page: Page,
    clients: usize,
    streams: Cell<usize>,
    connections: Cell<usize>,
    /// Connections that have not asked for anything yet, in the order they came.
    silent: RefCell<VecDeque<(u64, AbortHandle)>>,
    snapshot: RefCell<Option<(Instant, Bytes, Rc<crate::monitor::Snapshot>)>>,
}

impl Shared {
    pub(super) fn new(source: Arc<dyn Source>, guard: Guard, clients: usize) -> Self {
        Shared {
            source,
            guard,
            page: Page::new(),
            clients,
            streams: Cell::new(0),
            connections: Cell::new(0),
            silent: RefCell::default(),
            snapshot: RefCell::default(),
        }
    }

    /// The snapshot and its JSON, at most [`FRESH`] old: however many clients ask, the monitor is not asked more often.
    pub(super) fn snapshot(&self) -> (Bytes, Rc<crate::monitor::Snapshot>) {
        let mut cached = self.snapshot.borrow_mut();
        if let Some((made, json, snapshot)) = &*cached
            && made.elapsed() < FRESH
        {
            return (json.clone(), Rc::clone(snapshot));
        }
        let snapshot = self.source.snapshot();
        let json = Bytes::from(serde_json::to_vec(&snapshot).expect("plain data with string keys"));
        let snapshot = Rc::new(snapshot);
        *cached = Some((Instant::now(), json.clone(), Rc::clone(&snapshot)));
        (json, snapshot)
    }

    fn forget_silent(&self, id: u64) {
        self.silent.borrow_mut().retain(|(silent, _)| *silent != id);
    }
}

/// Accepts for ever.
pub(super) async fn serve(listener: TcpListener, shared: Shared) {
    let shared = Rc::new(shared);
    let most = shared.clients + SHORT_CONNECTIONS;
    for id in 0_u64.. {
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                // The process has no descriptor left, say. Whatever it is, it may pass, and asking at once will not help.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        if shared.connections.get() >= most {
            let longest = shared.silent.borrow_mut().pop_front();
            let Some((_, silent)) = longest else {
                // All are being answered, each within its time.
                continue;
            };
            silent.abort();
            // It is dropped when its task comes up, which is before this one does.
            tokio::task::yield_now().await;
        }
        let open = Open::new(&shared, id);
        let task = tokio::task::spawn_local(connection(stream, Rc::clone(&shared), open));
        shared.silent.borrow_mut().push_back((id, task.abort_handle()));
    }
}

/// Counts a connection while it lives.
struct Open {
    shared: Rc<Shared>,
    id: u64,
}

impl Open {
    fn new(shared: &Rc<Shared>, id: u64) -> Self {
        shared.connections.set(shared.connections.get() + 1);
        Open { shared: Rc::clone(shared), id }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.connections.set(self.shared.connections.get() - 1);
        self.shared.forget_silent(self.id);
    }
}

/// One request and its answer; a client that wants more connects again. So a connection is always in one of three states,
/// asking, being answered, or gone, and the first two have their time.
async fn connection(stream: TcpStream, shared: Rc<Shared>, open: Open) {
    let asked = Rc::new(Cell::new(false));
    let service = {
        let (asked, shared, id) = (Rc::clone(&asked), Rc::clone(&shared), open.id);
        hyper::service::service_fn(move |request: Request<Incoming>| {
            asked.set(true);
            shared.forget_silent(id);
            std::future::ready(Ok::<_, Infallible>(answer(&shared, &request)))
        })
    };
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .keep_alive(false)
            .half_close(false)
            .max_buf_size(BUFFER)
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(Patient::new(stream, READING)), service)
    );
    let mut asking = std::pin::pin!(tokio::time::sleep(ASKING));
    std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
        // A client that breaks off or does not speak HTTP was told what there is to tell.
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending if asked.get() => Poll::Pending,
        Poll::Pending => asking.as_mut().poll(cx),
    })
    .await;
    drop(open);
}

/// What is sent: a whole, or a stream.
pub(super) enum Answer {
    Whole(Option<Bytes>),
    Events(Box<EventStream>),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Answer::Events(stream) => stream.poll(cx).map(|bytes| Some(Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Answer::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Answer::Events(_) => SizeHint::default(),
        }
    }
}

/// Gives a place among those that follow events back.
pub(super) struct Place(Rc<Shared>);

impl Place {
    fn take(shared: &Rc<Shared>) -> Option<Self> {
        let taken = shared.streams.get();
        (taken < shared.clients).then(|| {
            shared.streams.set(taken + 1);
            Place(Rc::clone(shared))
        })
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

fn answer(shared: &Rc<Shared>, request: &Request<Incoming>) -> Response<Answer> {
    let mut response = route(shared, request).unwrap_or_else(|Refused(status, why)| {
        let mut response = whole("text/plain; charset=utf-8", Bytes::from_static(why.as_bytes()));
        *response.status_mut() = status;
        let (name, value) = match status {
            StatusCode::UNAUTHORIZED => (header::WWW_AUTHENTICATE, "Bearer"),
            StatusCode::METHOD_NOT_ALLOWED => (header::ALLOW, "GET, HEAD"),
            StatusCode::SERVICE_UNAVAILABLE => (header::RETRY_AFTER, "10"),
            _ => return response,
        };
        response.headers_mut().insert(name, HeaderValue::from_static(value));
        response
    });
    let fixed = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn route(shared: &Rc<Shared>, request: &Request<Incoming>) -> Result<Response<Answer>, Refused> {
    let headers = request.headers();
    shared.guard.host(request.uri(), headers)?;
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"));
    }
    if request.uri().path() == "/" {
        // Without data, so that it can ask for the token; and a link to it on another page is harmless.
        let mut response = whole("text/html; charset=utf-8", shared.page.body.clone());
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, shared.page.policy.clone());
        return Ok(response);
    }
    shared.guard.origin(headers)?;
    // Before the path, so that nobody without the token learns what paths there are.
    shared.guard.token(headers)?;
    match request.uri().path() {
        "/metrics" => {
            // Several headers of the name mean the same as one list.
            let accept: Vec<_> =
                headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
            let form = MetricsForm::preferred(&accept.join(","));
            let mut text = String::new();
            metrics::write(&shared.snapshot().1, form, &mut text);
            let mut response = whole(form.content_type(), Bytes::from(text));
            response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
            Ok(response)
        }
        "/snapshot" => Ok(whole("application/json", shared.snapshot().0)),
        // A HEAD must not hold a place: it is answered without a body, which would never be dropped by being read.
        "/events" if request.method() == Method::HEAD => Ok(whole(EVENTS, Bytes::new())),
        "/events" => {
            let Some(place) = Place::take(shared) else {
                return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, "as many clients as are allowed follow events\n"));
            };
            let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
            let stream = EventStream::new(place, last);
            Ok(typed(EVENTS, Answer::Events(Box::new(stream))))
        }
        _ => Err(Refused(StatusCode::NOT_FOUND, "there are: / /metrics /snapshot /events\n")),
    }
}

const EVENTS: &str = "text/event-stream";

fn whole(kind: &'static str, bytes: Bytes) -> Response<Answer> {
    typed(kind, Answer::Whole(Some(bytes)))
}

fn typed(kind: &'static str, answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
