//! The page: one document made of several files, and the policy that lets it run its own script and style and nothing
//! else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use sha2::{Digest, Sha256};

const DOCUMENT: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
/// In one function, whose names nobody outside can reach; each part knowing those before it by name; what runs at once is in the last.
const SCRIPT: &str = concat!(
    "\n(() => {\n",
    include_str!("page/base.js"),
    include_str!("page/site.js"),
    include_str!("page/tokens.js"),
    include_str!("page/latents.js"),
    include_str!("page/health.js"),
    include_str!("page/rules.js"),
    include_str!("page/main.js"),
    "})();\n",
);

/// What `/` answers.
pub(super) struct Page {
    pub(super) body: Bytes,
    /// Value of `Content-Security-Policy`.
    pub(super) policy: HeaderValue,
}

impl Page {
    pub(super) fn new() -> Self {
        let body = DOCUMENT.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
             trusted-types 'none'",
            hash(SCRIPT),
            hash(STYLE)
        );
        let policy = HeaderValue::try_from(policy).expect("hashes in Base64 and fixed text are ASCII");
        Page { body: Bytes::from(body), policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_the_document_is_needed_and_nothing_is_parsed_as_html() {
        let page = Page::new();
        let text = std::str::from_utf8(&page.body).unwrap();
        for outside in ["http://", "https://", "src=", "@import", "url(", "style=\"", "onclick="] {
            // The namespace of SVG is a name that happens to look like an address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains(outside), "{outside}");
        }
        for dangerous in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"] {
            assert!(!text.contains(dangerous), "{dangerous}");
        }
        assert!(text.contains(STYLE) && text.contains(SCRIPT));
        assert_eq!(text.matches("</script>").count(), 1);
        assert_eq!(text.matches("</style>").count(), 1);
    }
}
