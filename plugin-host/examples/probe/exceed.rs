//! Using more than a plugin may.

use super::Options;

/// Uses more than it may, once it has been ready for a while.
pub fn exceed(options: &Options) {
    const A_WHILE: std::time::Duration = std::time::Duration::from_millis(500);
    let number = |name| options.value(name).map(|text| text.parse().expect("a number"));
    let (eat, fill): (Option<usize>, Option<usize>) = (number("--eat"), number("--fill"));
    let burn = options.has("--burn");
    std::thread::spawn(move || {
        std::thread::sleep(A_WHILE);
        let mut eaten = Vec::new();
        for n in 0..eat.unwrap_or(0) {
            eaten.push(vec![n as u8 + 1; 1 << 20]);
        }
        let socket = std::env::var("BH_PLUGIN_SOCKET").unwrap_or_default();
        let own = std::path::Path::new(&socket).with_file_name("filled");
        for n in 0..fill.unwrap_or(0) {
            let part = own.with_extension(n.to_string());
            std::fs::write(&part, vec![7; 1 << 20]).expect("written");
            // On disk, so that memory holds it as a cache only.
            std::fs::File::open(part).and_then(|file| file.sync_all()).expect("on disk");
        }
        while burn || !eaten.is_empty() {
            std::hint::spin_loop();
            if !burn {
                std::thread::park();
            }
        }
    });
}
