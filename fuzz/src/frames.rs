//! The frames between server and worker, in both directions: what is decoded is what encodes to the same frame.

use vfio_user_tpm::tpm::{BUFFER_SIZE, Locality};
use vfio_user_tpm::worker::frame::{MAX_FRAME, Reply, Request};

use super::tape::Tape;

pub fn run(data: &[u8]) {
    super::log_lines::check();
    let mut tape = Tape::new(data);
    let from_bytes = tape.flag();
    if from_bytes {
        decode(tape.rest());
    } else {
        encode(&mut tape);
    }
}

fn decode(frame: &[u8]) {
    let mut again = Vec::new();
    let request = Request::decode(frame);
    let reply = Reply::decode(frame);
    assert!(request.is_err() || reply.is_err(), "a frame goes one way");
    match request {
        Ok((sequence, request)) => {
            if let Request::Execute(_, command) = request {
                assert!((1..=BUFFER_SIZE).contains(&command.len()));
            }
            request.encode(sequence, &mut again);
            assert_eq!(frame, again);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok((sequence, reply)) = reply {
        if let Reply::Response(response) = reply {
            assert!((1..=BUFFER_SIZE).contains(&response.len()));
        }
        reply.encode(sequence, &mut again);
        assert_eq!(frame, again);
    }
}

fn encode(tape: &mut Tape<'_>) {
    let (sequence, kind, detail) = (tape.u32(), tape.below(8), tape.byte());
    let locality = Locality::new(detail % 5).expect("below 5");
    let mut payload = vec![tape.byte(); usize::from(tape.u16()) % (BUFFER_SIZE + 8)];
    let given = tape.rest();
    payload.iter_mut().zip(given).for_each(|(to, from)| *to = *from);
    let fits = (1..=BUFFER_SIZE).contains(&payload.len());
    let text = String::from_utf8_lossy(&payload);

    let mut frame = Vec::new();
    let request = match kind {
        // The first frame is the server's own, and is decoded only.
        0..=2 => Request::Initialize,
        3 if fits => Request::Execute(locality, &payload),
        4 => Request::ResetEstablished(locality),
        _ => Request::Terminate,
    };
    request.encode(sequence, &mut frame);
    assert!(frame.len() <= MAX_FRAME);
    assert_eq!(Request::decode(&frame), Ok((sequence, request)));

    let reply = match kind {
        0 => Reply::Done { established: detail & 1 != 0 },
        1..=3 if fits => Reply::Response(&payload),
        _ => Reply::Failed(&text),
    };
    reply.encode(sequence, &mut frame);
    assert!(frame.len() <= MAX_FRAME);
    let decoded = Reply::decode(&frame);
    match reply {
        // A text that is cut may be cut inside a character, and only then is lost.
        Reply::Failed(text) if text.len() > BUFFER_SIZE => assert!(
            decoded.is_ok_and(|(_, reply)| matches!(reply, Reply::Failed(cut) if text.starts_with(cut)))
                || !text.is_char_boundary(BUFFER_SIZE)
        ),
        reply => assert_eq!(decoded, Ok((sequence, reply))),
    }
}
