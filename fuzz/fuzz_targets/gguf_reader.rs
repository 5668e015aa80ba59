//! Any bytes give a model or an error; a model can be read in full and written back the same.
//!
//! Run it with a real header among the seeds, and with the bounds that the reader promises:
//! `cargo +nightly fuzz run gguf_reader fuzz/corpus/gguf_reader tests -- -max_len=16384 -timeout=2
//! -malloc_limit_mb=256`

#![no_main]

#[allow(dead_code, unused_imports)]
#[path = "../../src/gguf/mod.rs"]
mod gguf;

use gguf::{Gguf, GgufLayout, GgufWriter};
use libfuzzer_sys::fuzz_target;

/// A file of a few bytes can ask for gigabytes of padding.
const LARGEST_REWRITE: u64 = 1 << 20;

fn rewrite(model: &Gguf) -> Option<Vec<u8>> {
    let specs = model.tensors.iter().map(|t| t.spec()).collect();
    let layout = GgufLayout::new(&model.metadata, specs, model.version)
        .expect("what was read can be laid out");
    if layout.file_size() > LARGEST_REWRITE {
        return None;
    }
    let mut writer = GgufWriter::new(Vec::new(), &layout).expect("a vector takes all bytes");
    for t in &model.tensors {
        writer
            .write_tensor(&t.name, model.data(t))
            .expect("the data fit the layout");
    }
    let bytes = writer.finish().expect("every tensor was written");
    assert_eq!(bytes.len() as u64, layout.file_size());
    Some(bytes)
}

fuzz_target!(|bytes: &[u8]| {
    let model = match Gguf::from_bytes("fuzz", bytes.to_vec()) {
        Ok(model) => model,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    for t in &model.tensors {
        assert_eq!(model.data(t).len() as u64, t.n_bytes());
        assert_eq!(model.tensor(&t.name), Some(t));
    }
    for (key, value) in model.metadata.iter() {
        assert_eq!(model.metadata.get(key), Some(value));
        if let Some(array) = value.as_array() {
            assert_eq!(array.get(array.len()), None);
            let _ = (array.to_u64s(), array.to_f64s(), array.depth());
        }
    }
    let Some(first) = rewrite(&model) else { return };
    let again = Gguf::from_bytes("again", first.clone()).expect("what was written can be read");
    assert_eq!(again.metadata, model.metadata);
    assert_eq!(again.version, model.version);
    for (a, b) in again.tensors.iter().zip(&model.tensors) {
        assert_eq!(a.spec(), b.spec());
        assert_eq!(again.data(a), model.data(b));
    }
    assert_eq!(rewrite(&again), Some(first));
});
