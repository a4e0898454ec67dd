//! Temporary.
use std::time::{Duration, Instant};
fn main() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/frame");
    let corpus: Vec<Vec<u8>> = std::fs::read_dir(dir).unwrap().map(|e| std::fs::read(e.unwrap().path()).unwrap()).collect();
    let mut x = 88172645463325252u64;
    let mut rnd = move || { x ^= x << 13; x ^= x >> 7; x ^= x << 17; x };
    let end = Instant::now() + Duration::from_secs(45);
    let (mut n, mut frames) = (0u64, 0usize);
    while Instant::now() < end {
        let mut input = corpus[rnd() as usize % corpus.len()].clone();
        for _ in 0..rnd() % 3 { let b = &corpus[rnd() as usize % corpus.len()]; input.extend_from_slice(b); }
        for _ in 0..rnd() % 6 {
            if input.is_empty() { break; }
            let at = rnd() as usize % input.len();
            match rnd() % 5 { 0 => input[at] = rnd() as u8, 1 => { input.remove(at); } 2 => input.insert(at, rnd() as u8), 3 => input[at] ^= 1 << (rnd() % 8), _ => input.truncate(at) }
        }
        frames += protocol::frame::fuzz(&input);
        n += 1;
    }
    println!("{n} inputs, {frames} frames");
}
