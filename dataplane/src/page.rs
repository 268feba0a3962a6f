//! The chat page's files, compiled into the program: plain modules that the browser loads as they are, with no build step
//! and nothing from other hosts.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::{
    Router,
    extract::Path,
    response::{IntoResponse, Response},
    routing::get,
};
use chatgateway_core::error::{ErrorCode, Refusal};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

/// One file of the page.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Its name below `/page/`.
    pub name: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// Its bytes.
    pub body: &'static [u8],
}

/// What the page may load and do: its own files and its own server, nothing inline.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! file {
    ($name:literal, $type:expr) => {
        File { name: $name, content_type: $type, body: include_bytes!(concat!("../page/", $name)) }
    };
}

/// The document itself, served at `/`.
pub const INDEX: File = file!("index.html", HTML);

/// What is served below `/page/`.
pub const FILES: [File; 10] = [
    file!("app.js", SCRIPT),
    file!("link.js", SCRIPT),
    file!("session.js", SCRIPT),
    file!("storage.js", SCRIPT),
    file!("sync.js", SCRIPT),
    file!("text.js", SCRIPT),
    file!("view.js", SCRIPT),
    file!("words.js", SCRIPT),
    file!("style.css", STYLE),
    file!("icon.svg", IMAGE),
];

/// The file of that name below `/page/`.
#[must_use]
pub fn file(name: &str) -> Option<File> {
    FILES.into_iter().find(|file| file.name == name)
}

/// `GET /`, `GET /page/{file}`, and 404 for every other path.
pub fn router() -> Router {
    Router::new()
        .route("/", get(|headers: HeaderMap| async move { answer(INDEX, &headers) }))
        .route(
            "/page/{file}",
            get(|Path(name): Path<String>, headers: HeaderMap, uri: Uri| async move {
                file(&name).map_or_else(|| nothing_at(&uri), |file| answer(file, &headers))
            }),
        )
        .fallback(|uri: Uri| async move { nothing_at(&uri) })
}

/// The file, unless the browser has it as it is: it asks each time, so a new release is seen at once.
fn answer(file: File, asked: &HeaderMap) -> Response {
    let tag = tag(file);
    let known = asked
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|one| one.trim().trim_start_matches("W/") == tag));
    let mut response =
        if known { StatusCode::NOT_MODIFIED.into_response() } else { (StatusCode::OK, file.body).into_response() };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(header::ETAG, tag);
    }
    response
}

/// Names these very bytes; the same in every process of one build.
fn tag(file: File) -> String {
    let mut hasher = DefaultHasher::new();
    file.body.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn nothing_at(uri: &Uri) -> Response {
    let refusal = Refusal::new(ErrorCode::NotFound, format!("there is nothing at {}", uri.path()));
    crate::transport::http::problem(&refusal).into_response()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn fetch(path: &str, known: Option<&HeaderValue>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut request = Request::get(path);
        if let Some(tag) = known {
            request = request.header(header::IF_NONE_MATCH, tag);
        }
        let response = router().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, body.collect().await.unwrap().to_bytes().to_vec())
    }

    #[tokio::test]
    async fn the_page_is_served_with_its_policy_and_asked_for_anew_only_when_it_changed() {
        let (status, headers, body) = fetch("/", None).await;
        assert_eq!((status, body.as_slice()), (StatusCode::OK, INDEX.body));
        assert_eq!(headers[header::CONTENT_TYPE], HTML);
        assert_eq!(headers[header::CONTENT_SECURITY_POLICY], CONTENT_SECURITY_POLICY);
        let (status, _, body) = fetch("/", headers.get(header::ETAG)).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0));
        let (status, headers, _) = fetch("/page/app.js", headers.get(header::ETAG)).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_TYPE], SCRIPT);
    }

    #[tokio::test]
    async fn other_paths_are_not_found() {
        for path in ["/page/none.js", "/page/..%2FCargo.toml", "/favicon.ico", "/index.php"] {
            let (status, headers, body) = fetch(path, None).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
            assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
            assert!(String::from_utf8(body).unwrap().contains("\"code\":\"not_found\""));
        }
    }

    fn text(file: File) -> &'static str {
        std::str::from_utf8(file.body).unwrap()
    }

    /// What stands between `before` and the next double quote, wherever it stands.
    fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split('"').next()).collect()
    }

    #[test]
    fn every_file_on_disk_is_served_and_every_reference_leads_to_one() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        for entry in std::fs::read_dir(folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name == INDEX.name || file(&name).is_some(), "{name} is not served");
        }
        let html = text(INDEX);
        let mut references: BTreeSet<&str> = quoted(html, "src=\"page/").into_iter().collect();
        references.extend(quoted(html, "href=\"page/"));
        for module in FILES.into_iter().filter(|file| file.content_type == SCRIPT) {
            references.extend(quoted(text(module), "from \"./"));
        }
        assert!(references.contains("app.js") && references.contains("link.js"), "{references:?}");
        for name in references {
            assert!(file(name).is_some(), "{name} is referred to and not there");
        }
        assert!(file("../Cargo.toml").is_none());
    }

    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        let html = text(INDEX);
        assert_eq!(html.matches("<script").count(), html.matches("<script type=\"module\" src=\"page/").count());
        for forbidden in ["<style", " style=", " onclick=", "javascript:"] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        for file in FILES.into_iter().chain([INDEX]) {
            let own = text(file).replace("http://www.w3.org/2000/svg", "");
            assert!(!own.contains("://"), "{} names another host", file.name);
            assert!(!text(file).contains("innerHTML"), "{} writes markup", file.name);
        }
    }
}
