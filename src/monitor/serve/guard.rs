//! Who may ask: the address, `Host`, where a browser says a request comes from, and the token.

use super::ServeOptions;
use crate::error::{Error, Result};
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{StatusCode, Uri};
use sha2::{Digest, Sha256};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use subtle::ConstantTimeEq;

/// A shorter token could be guessed by somebody who may try as often as they like.
const LEAST_TOKEN: usize = 16;

/// Checks requests.
pub(super) struct Guard {
    /// Hash of the token: what is compared has one length, whatever is presented.
    token: Option<[u8; 32]>,
    hosts: Vec<String>,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) &'static str);

/// The address that options name.
///
/// # Errors
/// It is no IP address with a port; or it is beyond loopback and there is no token.
pub(super) fn address(options: &ServeOptions) -> Result<SocketAddr> {
    let text = options.address.trim();
    let resolved = match text.strip_prefix("localhost:") {
        Some(port) => port.parse().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).ok(),
        None => text.parse().ok(),
    };
    let Some(address) = resolved else {
        return Err(Error::invalid(format!(
            "address `{text}` is not an IP address with a port, such as 127.0.0.1:9464 or [::1]:0"
        )));
    };
    if options.token.is_none() && !address.ip().to_canonical().is_loopback() {
        return Err(Error::invalid(format!(
            "address {address} can be reached from other machines, and there is no token: set one, or use 127.0.0.1"
        )));
    }
    Ok(address)
}

impl Guard {
    /// # Errors
    /// The token is too short or has other than visible ASCII characters (the message does not show it); a host is no
    /// host name.
    pub(super) fn new(options: &ServeOptions) -> Result<Self> {
        if let Some(token) = &options.token {
            if !token.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(Error::invalid("the token has other than visible ASCII characters, or spaces"));
            }
            if token.len() < LEAST_TOKEN {
                let found = token.len();
                return Err(Error::invalid(format!(
                    "the token has {found} characters, expected at least {LEAST_TOKEN}: try `openssl rand -hex 16`"
                )));
            }
        }
        for host in &options.hosts {
            let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_';
            if host.is_empty() || !host.bytes().all(fits) {
                return Err(Error::invalid(format!("host `{host}` is not a host name without port")));
            }
        }
        let token = options.token.as_ref().map(|token| Sha256::digest(token).into());
        Ok(Guard { token, hosts: options.hosts.clone() })
    }

    /// Whether `Host` is a name that this server may be called by. An address cannot be made to point elsewhere, and so
    /// needs no list; a name can.
    pub(super) fn host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Refused> {
        let bad = Refused(StatusCode::BAD_REQUEST, "expected one Host header\n");
        let mut all = headers.get_all(HOST).iter();
        let (Some(host), None) = (all.next(), all.next()) else { return Err(bad) };
        let host = host.to_str().map_err(|_| bad)?;
        // A request may name the host in its first line as well, and that one would count.
        let named = uri.authority().map(hyper::http::uri::Authority::as_str);
        if [Some(host), named].into_iter().flatten().all(|authority| self.may_be_called(authority)) {
            return Ok(());
        }
        Err(Refused(
            StatusCode::MISDIRECTED_REQUEST,
            "this name is not one of this server's: use its IP address or localhost, or add the name to its options\n",
        ))
    }

    fn may_be_called(&self, authority: &str) -> bool {
        let name = match authority.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => {
                if port.parse::<u16>().is_err() {
                    return false;
                }
                name
            }
            _ => authority,
        };
        let is_address = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => name.parse::<Ipv4Addr>().is_ok(),
        };
        let same = |allowed: &str| name.eq_ignore_ascii_case(allowed);
        is_address || same("localhost") || self.hosts.iter().any(|allowed| same(allowed))
    }

    /// Whether a browser says that a page from elsewhere makes this request. It could not read the answer, there being
    /// no CORS headers, but it could hold connections.
    pub(super) fn origin(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let refused = Refused(StatusCode::FORBIDDEN, "asked for by a page of another origin\n");
        if let Some(origin) = headers.get(ORIGIN) {
            let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
            let origin = origin.to_str().map_err(|_| refused)?;
            let of = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !of.is_some_and(|of| of.eq_ignore_ascii_case(host)) {
                return Err(refused);
            }
        }
        match headers.get(HeaderName::from_static("sec-fetch-site")).map(hyper::http::HeaderValue::as_bytes) {
            None | Some(b"same-origin" | b"none") => Ok(()),
            Some(_) => Err(refused),
        }
    }

    /// Whether the request presents the token, if there is one.
    pub(super) fn token(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let Some(expected) = &self.token else { return Ok(()) };
        let mut all = headers.get_all(AUTHORIZATION).iter();
        if let (Some(value), None) = (all.next(), all.next())
            && let Some((scheme, presented)) = split(value.as_bytes())
            && scheme.eq_ignore_ascii_case(b"bearer")
        {
            let presented: [u8; 32] = Sha256::digest(presented).into();
            if presented.ct_eq(expected).into() {
                return Ok(());
            }
        }
        Err(Refused(StatusCode::UNAUTHORIZED, "expected the header: Authorization: Bearer TOKEN\n"))
    }
}

fn split(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = value.iter().position(|b| *b == b' ')?;
    Some((&value[..space], value[space..].trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const TOKEN: &str = "0123456789abcdef";

    fn options(address: &str, token: Option<&str>) -> ServeOptions {
        ServeOptions { address: address.to_owned(), token: token.map(str::to_owned), ..ServeOptions::default() }
    }

    fn guard(token: Option<&str>) -> Guard {
        let hosts = vec!["node-7.example".to_owned()];
        Guard::new(&ServeOptions { hosts, ..options("127.0.0.1:0", token) }).unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn addresses() {
        for local in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:9464", "localhost:9464", "[::ffff:127.0.0.1]:1"] {
            assert!(address(&options(local, None)).unwrap().ip().to_canonical().is_loopback(), "{local}");
        }
        for open in ["0.0.0.0:9464", "[::]:0", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let error = address(&options(open, None)).unwrap_err();
            assert!(error.message().contains("no token"), "{error}");
            address(&options(open, Some(TOKEN))).unwrap();
        }
        for wrong in
            ["", "localhost", "127.0.0.1", ":9464", "example.org:80", "127.0.0.1:65536", "localhost:x", "::1:80"]
        {
            let error = address(&options(wrong, Some(TOKEN))).unwrap_err();
            assert!(error.message().contains("IP address with a port"), "{wrong}: {error}");
        }
    }

    #[test]
    fn options_that_cannot_work_are_refused_without_showing_the_token() {
        for token in ["", "secret", "fifteen-letters", "with a space in the middle", "ünverständlich-lang"] {
            let options = options("127.0.0.1:0", Some(token));
            let error = Guard::new(&options).err().unwrap();
            assert!(token.is_empty() || !error.message().contains(token), "{error}");
            assert!(token.is_empty() || !format!("{options:?}").contains(token));
        }
        for host in ["", "a b", "host:80", "http://host", "*"] {
            let options = ServeOptions { hosts: vec![host.to_owned()], ..ServeOptions::default() };
            assert!(Guard::new(&options).is_err(), "{host}");
        }
    }

    #[test]
    fn hosts() {
        let guard = guard(None);
        let check = |uri: &str, pairs: &[(&'static str, &str)]| guard.host(&uri.parse().unwrap(), &headers(pairs));
        for good in
            ["localhost", "LOCALHOST:9464", "127.0.0.1:1", "10.1.2.3", "[::1]:9464", "[::1]", "Node-7.Example:8080"]
        {
            assert_eq!(check("/", &[("host", good)]), Ok(()), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:9464",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "::1",
            "x@localhost",
            "localhost:",
            "localhost:99999",
            "[::1",
            "2130706433",
            "0x7f.1",
        ] {
            let Refused(status, _) = check("/", &[("host", bad)]).unwrap_err();
            assert_eq!(status, StatusCode::MISDIRECTED_REQUEST, "{bad}");
        }
        assert!(check("/", &[]).is_err());
        assert!(check("/", &[("host", "localhost"), ("host", "localhost")]).is_err());
        assert!(check("http://evil.example/", &[("host", "localhost")]).is_err());
        assert_eq!(check("http://localhost:9464/", &[("host", "localhost:9464")]), Ok(()));
    }

    #[test]
    fn origins() {
        let guard = guard(None);
        let check = |pairs: &[(&'static str, &str)]| guard.origin(&headers(pairs)).is_ok();
        let host = ("host", "localhost:9464");
        assert!(check(&[host]));
        assert!(check(&[host, ("sec-fetch-site", "same-origin")]));
        assert!(check(&[host, ("sec-fetch-site", "none")]));
        assert!(check(&[host, ("origin", "http://localhost:9464")]));
        assert!(!check(&[host, ("origin", "http://localhost:8080")]));
        assert!(!check(&[host, ("origin", "http://evil.example")]));
        assert!(!check(&[host, ("origin", "null")]));
        assert!(!check(&[host, ("sec-fetch-site", "cross-site")]));
        assert!(!check(&[host, ("sec-fetch-site", "same-site")]));
    }

    #[test]
    fn tokens() {
        let guard = guard(Some(TOKEN));
        let check = |values: &[&str]| {
            let pairs: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
            guard.token(&headers(&pairs)).is_ok()
        };
        assert!(check(&["Bearer 0123456789abcdef"]));
        assert!(check(&["bearer   0123456789abcdef "]));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "0123456789abcdef",
            "Basic 0123456789abcdef",
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdefg",
        ] {
            assert!(!check(&[wrong]), "{wrong}");
        }
        assert!(!check(&[]));
        assert!(!check(&["Bearer 0123456789abcdef", "Bearer 0123456789abcdef"]));
    }
}
