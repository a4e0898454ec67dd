//! A name that leads elsewhere each time it is asked for, and who waits at both ends: what an
//! attacker does to reach a machine's own services past a check of names.
//!
//! Needs a network of its own, in which port 53 is free and [`GOOD`] is an address.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, UdpSocket},
};

/// Where the name leads the first time.
const GOOD: Ipv4Addr = Ipv4Addr::new(198, 41, 0, 4);

/// The port of both servers.
const PORT: u16 = 8_000;

const TYPE_A: [u8; 2] = [0, 1];

/// Serves names and both ends from now on, each on a thread of its own.
pub(crate) fn serve() {
    for (address, name) in [(GOOD, "good"), (Ipv4Addr::LOCALHOST, "evil")] {
        let listener = TcpListener::bind((address, PORT)).expect("an own network");
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut said = String::new();
                let _ = BufReader::new(&stream).read_line(&mut said);
                let _ = write!(stream, "{name} heard {said}");
            }
        });
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).expect("an own network");
    std::thread::spawn(move || {
        let mut asked = 0;
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&answer(&question[..length], &mut asked), from);
        }
    });
}

/// The first question for an IPv4 address leads to [`GOOD`], every further one home; there is no
/// IPv6. Source: RFC 1035 §4.1.
fn answer(question: &[u8], asked: &mut u32) -> Vec<u8> {
    let name = question.iter().skip(12).position(|byte| *byte == 0).map_or(12, |at| at + 13);
    let kind = question.get(name..name + 2).unwrap_or_default();
    let end = name + 4;
    let is_a = kind == TYPE_A;
    let mut answer = question.get(..end).unwrap_or_default().to_vec();
    if answer.len() < 12 {
        return answer;
    }
    // A response, recursion available; one question, nothing further after the answer.
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[4..12].copy_from_slice(&[0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    if is_a {
        let address = if *asked == 0 { GOOD } else { Ipv4Addr::LOCALHOST };
        *asked += 1;
        eprintln!("dns: question {asked} answered {address}");
        // The name by a pointer, A, IN, no time to live, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}
