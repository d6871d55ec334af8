//! What is asked: HTTP's request line and header fields, of which only the first matters.

use httparse::{EMPTY_HEADER, Error, Status};

use super::{Answer, Outcome};

/// Bytes in the longest request. curl's has 80, a scraper's some hundred.
pub const MAX_REQUEST: usize = 2048;

/// Most header fields in a request.
const MAX_FIELDS: usize = 32;

/// A request so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// Its end has not come yet.
    Partial,
    /// The path that is wanted, without a query.
    Get(&'a str),
    /// None that is answered; this is said instead.
    Refused(Answer),
}

/// Reads what has come so far.
#[must_use]
pub fn parse(received: &[u8]) -> Request<'_> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(received);
    match (parsed, request.method, request.path) {
        (Ok(Status::Partial), ..) if received.len() < MAX_REQUEST => Request::Partial,
        (Ok(Status::Partial) | Err(Error::TooManyHeaders), ..) => refused(
            Outcome::RequestTooLarge,
            &format!("a request has at most {MAX_REQUEST} bytes and {MAX_FIELDS} header fields"),
        ),
        (Ok(Status::Complete(_)), Some("GET"), Some(target)) => {
            Request::Get(target.split_once('?').map_or(target, |(path, _)| path))
        }
        (Ok(Status::Complete(_)), ..) => refused(Outcome::MethodNotAllowed, "only GET is answered"),
        (Err(_), ..) => refused(Outcome::BadRequest, "an HTTP request was expected, as GET /status HTTP/1.1"),
    }
}

fn refused<'a>(outcome: Outcome, text: &str) -> Request<'a> {
    Request::Refused(Answer::line(outcome, text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn outcome(received: &[u8]) -> Option<Outcome> {
        match parse(received) {
            Request::Refused(answer) => Some(answer.outcome),
            Request::Partial | Request::Get(_) => None,
        }
    }

    #[test]
    fn a_path_is_got_as_curl_and_scrapers_ask_for_it() {
        let curl = b"GET /status HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";
        assert_eq!(parse(curl), Request::Get("/status"));
        assert_eq!(parse(b"GET /metrics?name=a HTTP/1.0\n\n"), Request::Get("/metrics"));
        for length in 0..curl.len() {
            assert_eq!(parse(&curl[..length]), Request::Partial, "{length} bytes");
        }
    }

    #[test]
    fn what_is_no_question_is_refused_with_a_reason() {
        assert_eq!(outcome(b"POST /status HTTP/1.1\r\n\r\n"), Some(Outcome::MethodNotAllowed));
        assert_eq!(outcome(b"\0\0\0\x01hello"), Some(Outcome::BadRequest));
        assert_eq!(outcome(b"GET /status HTTP/2.0\r\n\r\n"), Some(Outcome::BadRequest));
        let many = [&b"GET / HTTP/1.1\r\n"[..], &b"A: b\r\n".repeat(MAX_FIELDS + 1), b"\r\n"].concat();
        assert_eq!(outcome(&many), Some(Outcome::RequestTooLarge));
        let long = [&b"GET /"[..], &[b'a'; MAX_REQUEST]].concat();
        assert_eq!(parse(&long[..MAX_REQUEST - 1]), Request::Partial);
        assert_eq!(outcome(&long[..MAX_REQUEST]), Some(Outcome::RequestTooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_part_a_path_or_refused_and_more_bytes_change_no_verdict(
            start in prop::sample::select(vec![&b""[..], b"GET ", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nA: "]),
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(b" \r\n:/?GETHP1.".to_vec())], 0..200),
        ) {
            let whole = [start, &bytes].concat();
            let mut verdict = None;
            for length in 0..=whole.len() {
                let now = parse(&whole[..length]);
                match &verdict {
                    None if now == Request::Partial => {}
                    None => verdict = Some(now),
                    // The limits are not reached, so what was complete or wrong stays so.
                    Some(verdict) => prop_assert_eq!(&now, verdict),
                }
            }
        }
    }
}
