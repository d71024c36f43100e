"""Text as the numbers of a model's vocabulary, and back.

    words = of("hybrid")               # a kept model: a token is a byte
    words = of(folder or .gguf)        # the file's own vocabulary, by the package tokenizers
    words.encode("text") -> [ids]      words.decode([ids]) -> str
"""

from pathlib import Path

from postx.models import checkpoints
from postx.models.loading import extra, files, from_gguf

RUNS = (  # apostrophes, a word with what stands before it, digits, signs, line ends, spaces
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BPE_SPLITS = {  # tokenizer.ggml.pre -> how the text is cut before bytes are merged
    "smollm": "digits", "gpt-2": "plain", "gpt2": "plain", "default": "plain",
    "qwen2": RUNS.replace("DIGITS", r"\p{N}"), "llama-bpe": RUNS.replace("DIGITS", r"\p{N}{1,3}"),
}  # fmt: skip


class Bytes:
    """The vocabulary of the book's models: a token is a byte of UTF-8, and 0 stands before a document."""

    size, ends, begins = 256, (), [0]

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i).decode(errors="replace")

    def chat(self, question):
        raise ValueError("the model was not trained to answer: it has no template of a conversation")


class Words:
    """A vocabulary of the package tokenizers; `ends` are the tokens that end a text, `begins` what stands before one.

    marked=True gives also what the vocabulary itself puts around a text (BERT's [CLS] and [SEP]).
    """

    def __init__(self, tokenizer, ends=(), begins=(), template=None):
        self.template = template
        self.tokenizer, self.ends, self.begins = tokenizer, tuple(ends), list(begins)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.size = tokenizer.get_vocab_size()

    def encode(self, text, marked=False):
        return self.tokenizer.encode(text, add_special_tokens=marked).ids

    def decode(self, ids):
        return self.tokenizer.decode(list(ids))

    def chat(self, question):
        """The text that asks a question the way the model was trained to be asked, by its own template.

        Raises ValueError for a model without one, or with a broken one. (jinja2 comes with torch; the template runs in
        its sandbox.)
        """
        if self.template is None:
            raise ValueError("the model was not trained to answer: it has no template of a conversation")
        sandbox = extra("jinja2.sandbox").ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        messages = [{"role": "user", "content": question}]
        first, last = (self.tokenizer.id_to_token(ids[0]) if ids else "" for ids in (self.begins, self.ends))
        marks = {"bos_token": first, "eos_token": last}
        try:
            return sandbox.from_string(self.template).render(messages=messages, add_generation_prompt=True, **marks)
        except extra("jinja2").TemplateError as error:
            raise ValueError(f"the model's template of a conversation cannot be filled in ({error})") from error


def of(what):
    """The vocabulary that belongs to what `checkpoints.load` loads, a local one.

    Raises ModuleNotFoundError without tokenizers, ValueError for what is neither, a folder without a whole
    tokenizer.json, and a .gguf file whose vocabulary is of another kind.
    """
    path = Path(what)
    if str(what) in checkpoints.kept():
        return Bytes()
    if str(what).endswith(".gguf"):
        return _from_gguf(path)
    if not path.is_dir():
        raise ValueError(f"what: expected a kept model, a folder or a .gguf file, got {str(what)!r}")
    known = path / f"{checkpoints.PACKED}.json"
    about = files.read(known).get("words", {}) if known.exists() else None
    if about is not None and not {"ends", "begins"} <= set(about):
        raise ValueError(f"{known} says nothing of its model's vocabulary")
    if not (path / "tokenizer.json").exists():
        if about is None:
            raise ValueError(f"{path}: no tokenizer.json, so its text cannot be read")
        return Bytes()
    kind = extra("tokenizers").Tokenizer
    try:
        tokenizer = kind.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the package raises no narrower class
        raise ValueError(f"{path / 'tokenizer.json'} is damaged ({error})") from error
    if about is None:
        return Words(tokenizer, *_marks(path))
    return Words(tokenizer, about["ends"], about["begins"], about.get("template"))


def _marks(path):
    """(tokens that end a text, tokens before one, template of a conversation) as the folder's files say them."""
    about = files.config(path)
    ends = about.get("eos_token_id")
    begins = about.get("bos_token_id") if about.get("model_type") in ("recurrent_gemma", "llama", "mistral") else None
    template = files.read(path / "tokenizer_config.json").get("chat_template")
    if (path / "chat_template.jinja").exists():
        template = (path / "chat_template.jinja").read_text(encoding="utf8")
    marks = [ends] if isinstance(ends, int) else ends or (), [] if begins is None else [begins]
    return *marks, template if isinstance(template, str) else None


def _from_gguf(path):
    reader = from_gguf.read(path)
    kind = from_gguf.field(reader, "tokenizer.ggml.model")
    split = from_gguf.field(reader, "tokenizer.ggml.pre", "default")
    if kind != "gpt2" or split not in BPE_SPLITS:
        raise ValueError(f"{path}: a vocabulary of kind {kind!r}, cut by {split!r}, is not known here")
    tk = extra("tokenizers")
    tokens, merges = (from_gguf.field(reader, f"tokenizer.ggml.{part}") for part in ("tokens", "merges"))
    kinds = from_gguf.field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ")) for pair in merges]
    tokenizer = tk.Tokenizer(tk.models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    pre, bytes_ = tk.pre_tokenizers, tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if BPE_SPLITS[split] == "digits":
        cut = [pre.Digits(individual_digits=True), bytes_]
    elif BPE_SPLITS[split] == "plain":
        cut = [bytes_]
    else:
        whole = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = [pre.Split(tk.Regex(BPE_SPLITS[split]), "isolated"), whole]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre.Sequence(cut), tk.decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([tk.AddedToken(token, special=True) for token in control])
    ends = from_gguf.field(reader, "tokenizer.ggml.eos_token_id")
    begins = from_gguf.field(reader, "tokenizer.ggml.bos_token_id")
    first = [begins] if from_gguf.field(reader, "tokenizer.ggml.add_bos_token", False) else []
    template = from_gguf.field(reader, "tokenizer.chat_template")
    return Words(tokenizer, [] if ends is None else [int(ends)], [int(b) for b in first], template)
