//! What is answered.

/// How a question has ended, as a status of HTTP (RFC 9110, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 200.
    Ok,
    /// 400: that was no HTTP request.
    BadRequest,
    /// 404: there is nothing of that name.
    NotFound,
    /// 405: it can only be read.
    MethodNotAllowed,
    /// 408: the request did not come in time.
    RequestTimeout,
    /// 431: the request is longer than any that can be meant.
    RequestTooLarge,
    /// 503: what was asked about does not work.
    ServiceUnavailable,
}

impl Outcome {
    /// The number, and what it is called.
    const fn status_line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::RequestTooLarge => "431 Request Header Fields Too Large",
            Self::ServiceUnavailable => "503 Service Unavailable",
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How the question has ended.
    pub outcome: Outcome,
    /// What the text is, as in `Content-Type`.
    pub content_type: &'static str,
    /// The text.
    pub body: String,
}

impl Answer {
    /// A line for people.
    #[must_use]
    pub fn line(outcome: Outcome, text: &str) -> Self {
        Self { outcome, content_type: "text/plain; charset=utf-8", body: format!("{text}\n") }
    }

    /// As it goes out. The connection ends after it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { outcome, content_type, body } = self;
        let allow = if *outcome == Outcome::MethodNotAllowed { "Allow: GET\r\n" } else { "" };
        format!(
            "HTTP/1.1 {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Cache-Control: no-store\r\n\
             Connection: close\r\n\r\n{body}",
            outcome.status_line(),
            body.len()
        )
        .into_bytes()
    }
}
