//! The `tokenizer.*` metadata of a GGUF from the tokenizer files of a Hugging Face model.
//!
//! The keys, their values and their order are those that llama.cpp's converter writes, with these
//! differences:
//!
//! * `tokenizer.ggml.pre` is found by comparing the pre-tokenizer's expressions with a table
//!   instead of by a hash of one tokenized text, so a changed vocabulary still converts.
//! * A SentencePiece vocabulary that is only in `tokenizer.json` gets scores from the order of its merges
//!   instead of one score for all, and is padded to `vocab_size`.
//! * `add_space_prefix` is written as false where the tokenizer itself adds no space in front, and
//!   `add_bos_token` as false where llama.cpp would add one that the tokenizer does not.
//! * Named chat templates come in the order of the file; the converter's order is random.
//! * An id of -1, or one outside the vocabulary, is left out.
//!
//! Files that are malformed, contradict each other or would make llama.cpp end the process are refused.

mod bpe;
mod byte_level;
mod files;
mod pre_tokenizer;
mod sentencepiece;
mod special;
mod spm;
mod tokenizer_json;
mod tokens;

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::Value as Json;

use self::files::{JsonFile, MAX_TOKENIZER_BYTES};
use self::special::Special;
use self::tokenizer_json::{Kind, TokenizerJson, config_vocab_size};
use super::super::gguf::Value;

/// What the user decides about a vocabulary.
#[derive(Clone, Debug, Default)]
pub struct VocabOptions {
    /// llama.cpp's name for the pre-tokenizer, in place of the one derived from `tokenizer.json`.
    pub pre_tokenizer: Option<String>,
}

/// Families whose converters do something of their own about the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Llama, Mistral, Mixtral, Granite: `tokenizer.model` first.
    Llama,
    /// ERNIE 4.5: `tokenizer.model` first.
    Ernie,
    /// DeepSeek's first: `tokenizer.model` first.
    DeepSeek,
    /// GLM 4 and later: special tokens by their text.
    Glm,
    /// Phi 3 and its Mixture of Experts: added tokens are what their files call them.
    Phi,
    /// `tokenizer.json` first.
    Other,
}

impl Family {
    fn of(config: &Json) -> Family {
        let architecture = config
            .get("architectures")
            .and_then(|a| a.get(0))
            .and_then(Json::as_str)
            .unwrap_or_default();
        match architecture {
            "LLaMAForCausalLM"
            | "LlamaForCausalLM"
            | "MistralForCausalLM"
            | "MixtralForCausalLM"
            | "GraniteForCausalLM"
            | "GraniteMoeForCausalLM"
            | "GraniteMoeSharedForCausalLM"
            | "AfmoeForCausalLM" => Family::Llama,
            "Ernie4_5_ForCausalLM" | "Ernie4_5ForCausalLM" | "Ernie4_5_MoeForCausalLM" => {
                Family::Ernie
            }
            "DeepseekForCausalLM" => Family::DeepSeek,
            "Glm4MoeForCausalLM"
            | "Glm4vMoeForConditionalGeneration"
            | "Glm4MoeLiteForCausalLM"
            | "GlmMoeDsaForCausalLM" => Family::Glm,
            "Phi3ForCausalLM" | "PhiMoEForCausalLM" | "PhimoeForCausalLM" => Family::Phi,
            _ => Family::Other,
        }
    }

    fn prefers_model(self) -> bool {
        matches!(self, Family::Llama | Family::Ernie | Family::DeepSeek)
    }
}

/// The `tokenizer.*` keys and values for the model in `dir`, in the order to write them.
///
/// `config` is the parsed `config.json` of the model: `architectures`, `model_type`, `vocab_size` and the
/// special-token ids are read from it. Read from `dir` are `tokenizer.json`, `tokenizer.model`,
/// `tokenizer_config.json`, `added_tokens.json`, `merges.txt` and the chat templates.
///
/// # Errors
/// The tokenizer is missing, malformed or of a kind that llama.cpp has no tokenizer for; its
/// pre-tokenizer is not known and none was given. The message names the file and the field.
pub fn metadata(dir: &Path, config: &Json, options: &VocabOptions) -> Result<Vec<(String, Value)>> {
    let tokenizer = TokenizerJson::open(dir)?;
    let tokenizer_config = spm::tokenizer_config(dir)?;
    let model = files::read_bytes(&dir.join("tokenizer.model"), MAX_TOKENIZER_BYTES)?;
    let family = Family::of(config);
    let source = Source {
        dir,
        config,
        family,
        tokenizer: tokenizer.as_ref(),
        tokenizer_config: tokenizer_config.as_ref(),
        vocab_size: config_vocab_size(dir, config)?,
    };
    match (&tokenizer, &model) {
        (None, None) => bail!(
            "{}: there is no tokenizer: neither tokenizer.json nor tokenizer.model",
            dir.display()
        ),
        (_, Some(bytes)) if family.prefers_model() || tokenizer.is_none() => {
            source.sentencepiece(Some(bytes), options)
        }
        (Some(json), model) => match json.kind()? {
            Kind::SentencePiece => source.sentencepiece(model.as_deref(), options),
            Kind::ByteLevel => source.byte_level(json, options),
        },
        (None, Some(bytes)) => source.sentencepiece(Some(bytes), options),
    }
}

/// The files of one model.
struct Source<'a> {
    dir: &'a Path,
    config: &'a Json,
    family: Family,
    tokenizer: Option<&'a TokenizerJson>,
    tokenizer_config: Option<&'a JsonFile>,
    vocab_size: Option<usize>,
}

impl Source<'_> {
    fn special(&self, n_vocab: usize) -> Result<Special> {
        Special::load(
            self.dir,
            self.tokenizer.map(|t| &t.file),
            self.tokenizer_config,
            self.config,
            n_vocab,
        )
    }

    /// A "gpt2" vocabulary.
    fn byte_level(
        &self,
        tokenizer: &TokenizerJson,
        options: &VocabOptions,
    ) -> Result<Vec<(String, Value)>> {
        let file = tokenizer.file.path.as_path();
        let model_type = self.config.get("model_type").and_then(Json::as_str);
        let pre = match &options.pre_tokenizer {
            Some(name) => {
                pre_tokenizer::check_name(name)?;
                name.as_str()
            }
            None => pre_tokenizer::derive(
                &tokenizer.file.root(),
                tokenizer.ignore_merges()?,
                model_type.unwrap_or_default(),
            )?,
        };
        let vocab = tokenizer.bpe_vocab()?;
        let table = bpe::tokens(tokenizer, self.tokenizer_config, &vocab, self.vocab_size)?;
        table.check(file)?;
        let merges = bpe::merges(self.dir, tokenizer, &vocab)?;
        let mut special = self.special(table.len())?;
        if self.family == Family::Glm {
            let added = tokenizer.added_tokens(self.tokenizer_config, &vocab)?;
            for (kind, text) in [
                ("bos", "[gMASK]"),
                ("eot", "<|user|>"),
                ("unk", "<|endoftext|>"),
                ("eom", "<|observation|>"),
            ] {
                match added.iter().find(|(_, token)| token.content == text) {
                    Some((&id, _)) => special.set_id(kind, id),
                    None => bail!(
                        "{}: field `added_tokens` lacks {text:?}, which GLM models have",
                        file.display()
                    ),
                }
            }
        }
        if special.flag("bos").is_none() && pre_tokenizer::adds_bos_by_default(pre) {
            special.set_add("bos", false);
        }
        for kind in ["bos", "eos"] {
            if special.flag(kind) == Some(true) && special.id(kind).is_none() {
                bail!(
                    "{}: a {kind} token is to be added to texts, but neither tokenizer_config.json nor \
                     config.json says which token that is (fields `{kind}_token` and `{kind}_token_id`)",
                    file.display()
                );
            }
        }
        let mut out: Vec<(String, Value)> = Vec::new();
        if self.family == Family::Llama
            && let Some(prefix) = spm::configured_prefix(self.tokenizer_config)?
        {
            out.push(("tokenizer.ggml.add_space_prefix".into(), prefix.into()));
        }
        out.push(("tokenizer.ggml.model".into(), "gpt2".into()));
        out.push(("tokenizer.ggml.pre".into(), pre.into()));
        out.push(("tokenizer.ggml.tokens".into(), table.texts().into()));
        out.push(("tokenizer.ggml.token_type".into(), table.types().into()));
        out.push(("tokenizer.ggml.merges".into(), merges.into()));
        self.granite(&mut special);
        special.metadata(&mut out);
        Ok(out)
    }

    /// A "llama" vocabulary, from `tokenizer.model` if its bytes are given.
    fn sentencepiece(
        &self,
        model: Option<&[u8]>,
        options: &VocabOptions,
    ) -> Result<Vec<(String, Value)>> {
        if let Some(name) = &options.pre_tokenizer
            && name != "default"
        {
            bail!(
                "--pre-tokenizer {name}: {} has a SentencePiece vocabulary, which llama.cpp uses without a \
                 pre-tokenizer",
                self.dir.display()
            );
        }
        let (file, spm) = match (model, self.tokenizer) {
            (Some(bytes), _) => (
                self.dir.join("tokenizer.model"),
                spm::from_model(
                    self.dir,
                    bytes,
                    self.tokenizer_config,
                    self.vocab_size,
                    match self.family {
                        Family::Phi => spm::AddedRule::Phi(self.tokenizer.map(|t| &t.file)),
                        _ => spm::AddedRule::Usual,
                    },
                )?,
            ),
            (None, Some(json)) => (
                json.file.path.clone(),
                spm::from_json(json, self.tokenizer_config, self.vocab_size)?,
            ),
            (None, None) => bail!("{}: there is no tokenizer", self.dir.display()),
        };
        spm.table.check(&file)?;
        spm.table.check_bytes(&file)?;
        let configured = match self.family {
            Family::Llama | Family::Ernie => spm::configured_prefix(self.tokenizer_config)?,
            _ => None,
        };
        let prefix = |value: bool| {
            (
                "tokenizer.ggml.add_space_prefix".to_owned(),
                Value::from(value),
            )
        };
        let mut special = self.special(spm.table.len())?;
        let mut out: Vec<(String, Value)> = Vec::new();
        if self.family == Family::Llama {
            out.extend(configured.map(prefix));
        }
        out.push(("tokenizer.ggml.model".into(), "llama".into()));
        out.push(("tokenizer.ggml.pre".into(), "default".into()));
        out.push(("tokenizer.ggml.tokens".into(), spm.table.texts().into()));
        out.push(("tokenizer.ggml.scores".into(), spm.table.scores().into()));
        out.push(("tokenizer.ggml.token_type".into(), spm.table.types().into()));
        self.granite(&mut special);
        special.metadata(&mut out);
        if self.family != Family::Llama {
            out.extend(configured.map(prefix));
        }
        if configured.is_none() && !spm.add_space_prefix {
            out.push(prefix(false));
        }
        Ok(out)
    }

    /// The vocabulary of Granite's code models, which are known by its size, takes no token in front.
    fn granite(&self, special: &mut Special) {
        if self.family == Family::Llama && self.vocab_size == Some(49152) {
            special.set_add("bos", false);
        }
    }
}
