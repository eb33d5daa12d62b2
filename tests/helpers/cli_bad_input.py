"""Commands that cannot work, and what is said of each (a regular expression). Their files:
`cli_world`."""

from __future__ import annotations

ENCODE = "encode model --input texts.txt --output x.npy"
TRAIN = "train run.yaml --output x"

# Command: what its line says (a regular expression).
CASES = {
    # ---- the command line itself
    "": "required: VERB; see grit --help",
    "encod": "invalid choice: 'encod'.*encode",
    "--bogus": "required: VERB",
    "encode model --input texts.txt": "required: --output; see grit encode --help",
    f"{ENCODE} --pecision int8": "unknown flag --pecision, did you mean --precision\\?",
    f"{ENCODE} --max 5": "unknown flag --max",  # no abbreviations
    f"{ENCODE} stray": "unexpected argument 'stray'",
    "eval mteb": "name a MODEL or a URL, or --show-instructions",
    "eval mteb --show-instructions --prompts absent": (
        "absent: No such file or directory; --prompts is grit, paper, mteb, none or a JSON file"
    ),
    "eval mteb model --tasks a --protocol index": "--protocol: invalid choice: 'index'",
    "eval": "required: retrieval\\|perplexity\\|rag",
    "eval rank model": "invalid choice: 'rank'",
    "data": "required: prepare\\|decontaminate\\|pydocs\\|distractors\\|relevance\\|repeats",
    # ---- encode
    "encode model --input absent --output x.npy": "absent: no such file",
    "encode model --input empty --output x.npy": "empty: empty; expected one JSON object a line",
    "encode model --input binary --output x.npy": "binary: binary data",
    "encode model --input latin1 --output x.npy": "latin1:1: not UTF-8 text",
    "encode model --input broken --output x.npy": "broken:2: not valid JSON: .* at column 20",
    "encode model --input list --output x.npy": (
        "list:1: expected a string or an object with 'text', got list"
    ),
    "encode model --input strange --output x.npy": "strange:1: no 'text' in this line",
    "encode model --input number --output x.npy": "number:1: 'text' must be a string, got int",
    "encode model --input surrogate --output x.npy": "surrogate:1: holds half of a surrogate pair",
    "encode model --input folder --output x.npy": "folder: a folder, not a JSONL file",
    "encode model --input texts.txt --output folder": "folder: is a folder; name a file",
    "encode model --input texts.txt --output empty/x.npy": (
        "empty/x.npy: cannot be written \\(Not a directory\\)"
    ),
    "encode model --input texts.txt --output nowhere/x.npy": (
        "nowhere/x.npy: cannot be written \\(No such file"
    ),
    "encode model --input texts.txt --output /proc/x.npy": "/proc/x.npy: cannot be written",
    "encode model --input texts.txt --output /dev/full": (
        "/dev/full: cannot be written .*No space left"
    ),
    "encode model --input texts.txt --output full.npy": (
        "full.npy: cannot be written .*No space left"
    ),
    f"{ENCODE} --dim 49": "--dim 49: the model's vectors have 48 dimensions",
    f"{ENCODE} --dim 0": "--dim: must be at least 1, got 0",
    f"{ENCODE} --dim many": "--dim: must be a whole number, got 'many'",
    f"{ENCODE} --max-length -1": "--max-length: must be at least 1, got -1",
    f"{ENCODE} --max-length 32769": "max_length is 32769 tokens, .* context is 32768",
    f"{ENCODE} --max-length 1": (
        "nothing is left for a text; shorten the instruction or raise max_length"
    ),
    f"{ENCODE} --precision int9": "--precision: invalid choice: 'int9'",
    # ---- models, in whichever verb
    "encode absent/model --input texts.txt --output x.npy": (
        "absent/model: model not found: no such directory"
    ),
    **{
        command: "^grit( [a-z]+){1,2}: http://host:1: a URL; expected a model directory or a hub id .*grit eval"
        for command in (
            "encode http://host:1 --input texts.txt --output x.npy",
            f"{TRAIN} --model.path http://host:1",
        )
    },
    "encode ./absent --input texts.txt --output x.npy": "./absent: model not found: no such directory",
    "encode '' --input texts.txt --output x.npy": "the model's name is empty",
    "encode model --input texts.txt --output ''": "argument --output: must not be empty",
    "encode model --input= --output x.npy": "argument --input: must not be empty",
    "index model --input corpus.jsonl --output new --store ''": "argument --store: must not be empty",
    "encode empty --input texts.txt --output x.npy": "empty: a file; expected a model directory",
    "encode folder --input texts.txt --output x.npy": "folder/config.json: no such file",
    "encode m-truncated --input texts.txt --output x.npy": (
        "m-truncated/model.safetensors: truncated"
    ),
    "encode m-no-tensor --input texts.txt --output x.npy": (
        "m-no-tensor/model.safetensors: tensor 'model.norm.weight' is missing; config.json asks"
        " for it"
    ),
    "encode m-no-tokenizer --input texts.txt --output x.npy": (
        "m-no-tokenizer: no tokenizer.json there"
    ),
    "encode m-bad-tokenizer --input texts.txt --output x.npy": (
        "m-bad-tokenizer/tokenizer.json: not a tokenizer.json"
    ),
    "encode m-binary-tokenizer --input texts.txt --output x.npy": (
        "m-binary-tokenizer/tokenizer.json: not UTF-8 text"
    ),
    "encode m-pickle --input texts.txt --output x.npy": (
        "m-pickle: only pickled weights there .*refused"
    ),
    "encode m-no-weights --input texts.txt --output x.npy": "m-no-weights: no model.safetensors",
    "encode m-no-config --input texts.txt --output x.npy": "m-no-config/config.json: no such file",
    "encode m-bad-config --input texts.txt --output x.npy": (
        "m-bad-config/config.json: not valid JSON"
    ),
    "encode m-bad-grit --input texts.txt --output x.npy": (
        "m-bad-grit/grit.json: 'pooling' must be one of mean"
    ),
    "encode m-unknown --input texts.txt --output x.npy": (
        "architecture 'MambaForCausalLM' is not supported"
    ),
    "encode m-other-shape --input texts.txt --output x.npy": (
        "'model.embed_tokens.weight' has shape"
    ),
    "encode m-zero-heads --input texts.txt --output x.npy": (
        "num_key_value_heads: must be at least 1, got 0"
    ),
    "encode m-small-vocabulary --input texts.txt --output x.npy": (
        "'model.embed_tokens.weight' has shape"
    ),
    "generate m-truncated --prompt a": "m-truncated/model.safetensors: truncated",
    "index m-pickle --input corpus.jsonl --output x": "m-pickle: only pickled weights",
    "ask m-no-tokenizer --index index q": "m-no-tokenizer: no tokenizer.json",
    "eval retrieval ./absent --input embedding.jsonl": "./absent: model not found",
    "eval rag m-truncated --input rag.jsonl": "m-truncated/model.safetensors: truncated",
    # ---- generate
    "generate model": "one of the arguments --prompt --input is required",
    "generate model --prompt a --input prompts.jsonl": (
        "--input: not allowed with argument --prompt"
    ),
    "generate model --prompt ' '": "the prompt is empty",
    "generate model --prompt a --max-new-tokens 0": "--max-new-tokens: must be at least 1",
    "generate model --prompt a --max-new-tokens 100000000": (
        "4 tokens and 100000000 new ones do not fit this model's context of 32768"
    ),
    "generate model --prompt a --temperature -1": (
        "temperature must be 0 \\(greedy\\) or above, got -1.0"
    ),
    "generate model --prompt a --temperature nan": ("temperature must be finite, got nan"),
    "generate model --prompt a --temperature hot": "--temperature: must be a number, got 'hot'",
    "generate model --prompt a --top-p 0": "top_p must be above 0 and at most 1, got 0.0",
    "generate model --prompt a --top-p 1.1": "top_p must be above 0 and at most 1, got 1.1",
    "generate model --prompt a --top-k -1": "--top-k: must be at least 0, got -1",
    "generate model --prompt a --seed x": "--seed: must be a whole number, got 'x'",
    "generate model --input absent": "absent: no such file",
    "generate model --input empty": "empty: empty",
    "generate model --input binary": "binary: binary data",
    "generate model --input latin1": "latin1:1: not UTF-8 text",
    "generate model --input broken": "broken:2: not valid JSON",
    "generate model --input strange": "strange:1: no 'prompt' or 'text' or 'messages' in this line",
    "generate model --input number": "number:1: 'prompt' must be a string, got int",
    "generate model --input roles": "roles:1: the last message must be the user's",
    "generate model --input messages": "messages:1: 'messages' must be a list, got str",
    # ---- index
    "index model --input absent --output x": "absent: no such file",
    "index model --input empty --output x": "empty: empty",
    "index model --input binary --output x": "binary: binary data",
    "index model --input latin1 --output x": "latin1:1: ",
    "index model --input broken --output x": "broken:2: not valid JSON",
    "index model --input list --output x": "list:1: expected a JSON object, got list",
    "index model --input strange --output x": 'strange:1: expected .*"id"',
    "index model --input number --output x": (
        "number:1: the text of the document must be a string, got int"
    ),
    "index model --input twice --output x": ("twice:2: duplicate id 'a', first used at twice:1"),
    "index model --input folder --output x": "folder: a folder, not a JSONL file",
    "index model --input corpus.jsonl --output empty": "empty: ",
    "index model --input corpus.jsonl --output empty/x": (
        "empty/x: cannot be written \\(Not a directory\\)"
    ),
    "index model --input corpus.jsonl --output /proc/x": "/proc/x: cannot be written",
    "index model --input corpus.jsonl --output folder": (
        "folder: the folder is not empty and holds no index"
    ),
    "index model --input corpus.jsonl --output model": (
        "model: the folder is not empty and holds no index"
    ),
    "index model --input corpus.jsonl --output i-other": (
        "i-other: the existing index was made by another model"
    ),
    "index model --input corpus.jsonl --output index --kv none": (
        "index: the existing index has kv native"
    ),
    "index model --input corpus.jsonl --output index --max-length 77": (
        "has max_length 4096, not 77; remove it or"
    ),
    "index model --input corpus.jsonl --output i-bad-manifest": (
        "i-bad-manifest/index.json: cannot be read"
    ),
    "index model --input corpus.jsonl --output i-other-manifest": (
        "index.json: is not the manifest of an index"
    ),
    "index model --input corpus.jsonl --output i-wrong-type": "i-wrong-type",
    "index model --input corpus.jsonl --output i-short-vectors": (
        "i-short-vectors: the index is damaged"
    ),
    "index model --input corpus.jsonl --output i-short-documents": (
        "i-short-documents: the index is damaged"
    ),
    "index model --input corpus.jsonl --output i-bad-documents": "i-bad-documents",
    "index model --input corpus.jsonl --output i-format": (
        "i-format: the index has format 99, this version reads formats 2 and 3"
    ),
    "index model --input corpus.jsonl --output i-bad-kv": (
        "i-bad-kv/kv: cannot be opened as a document store"
    ),
    "index model --input corpus.jsonl --output i-no-kv": "i-no-kv",
    "index model --input corpus.jsonl --output index --kv int4": (
        "index: the existing index has kv native"
    ),
    "index model --input corpus.jsonl --output index --store elsewhere": (
        "elsewhere is not the document store of this index"
    ),
    "index model --input corpus.jsonl --output x --store nowhere://x": (
        "nowhere://x: cannot be opened as a document"
    ),
    "index model --input corpus.jsonl --output x --kv int5": "--kv: invalid choice: 'int5'",
    "index model --input corpus.jsonl --output x --vectors faiss": (
        "--vectors: invalid choice: 'faiss'"
    ),
    "index model --input corpus.jsonl --output x --milvus http://h:1": "needs --vectors milvus",
    "index model --input corpus.jsonl --output x --vectors milvus --milvus h": (
        "a URI like http://host:19530, got 'h'"
    ),
    "index model --input corpus.jsonl --output x --max-length 0": (
        "--max-length: must be at least 1, got 0"
    ),
    # ---- ask
    "ask model --index index": "required: QUESTION",
    "ask model --index index ''": "the question is empty",
    "ask model --index index ' '": "the question is empty",
    "ask model --index absent q": "absent: there is no index; make one with: grit index",
    "ask model --index empty q": "empty: there is no index",
    "ask model --index folder q": "folder: there is no index",
    "ask model --index i-other q": "i-other: this index was made by another model",
    "ask model --index i-bad-manifest q": "i-bad-manifest/index.json: cannot be read",
    "ask model --index i-other-manifest q": "i-other-manifest/index.json: is not the manifest of an index",
    "ask model --index i-wrong-type q": "i-wrong-type",
    "ask model --index i-nothing q": (
        "i-nothing: there is no document in this index yet; run the same grit index again"
    ),
    "ask model --index i-format q": "i-format: the index has format 99, this version reads formats 2 and 3",
    "ask model --index i-short-vectors q": (
        "i-short-vectors/vectors.npy: cannot be read .*; make the index again"
    ),
    "ask model --index i-short-documents q": (
        "i-short-documents/documents.jsonl: is cut short \\(. of 9 documents\\)"
    ),
    "ask model --index i-bad-documents q --k 9 --max-new-tokens 2": "i-bad-documents",
    "ask model --index index q --mode nope": "--mode: invalid choice: 'nope'",
    "ask model --index index q --k 0": "--k: must be at least 1, got 0",
    "ask model --index index q --max-new-tokens -1": "--max-new-tokens: must be at least 1, got -1",
    "ask model --index index q --max-new-tokens 100000": (
        "does not fit the model's context of 32768 tokens, even without documents"
    ),
    "ask model --index index q --search-precision int4": (
        "--search-precision: invalid choice: 'int4'"
    ),
    "ask model --index index q --search-dim 0": "--search-dim: must be at least 1, got 0",
    "ask model --index index q --search-dim 49": (
        "cannot search 49 dimensions: the vectors have 48"
    ),
    "ask model --index index q --search-oversampling 0": (
        "--search-oversampling: must be at least 1, got 0"
    ),
    "ask model --index index q --search words": "--search: invalid choice: 'words'",
    "ask model --index index q --fusion sum": "--fusion: invalid choice: 'sum'",
    "ask absent --index index q --where 'year >'": "where: position 7: expected a value",
    "ask model --index index q --where 'year > 1'": "'year'; no document has any",
    "eval rag model --input rag.jsonl --where 'year > 1'": "no --index is given",
    # ---- eval
    **{
        f"eval {kind} model --input {name}": words
        for kind in ("retrieval", "perplexity", "rag")
        for name, words in {
            "absent": "absent: no such file",
            "empty": "empty: empty",
            "binary": "binary: binary data",
            "latin1": "latin1:1: not UTF-8 text",
            "broken": "broken:1: ",
            "list": "list:1: expected a JSON obj",
            "strange": "strange:1: no known key",
            "number": "number:1: ",
            "folder": "folder: a folder",
        }.items()
    },
    "eval retrieval model --input folder": "folder: no corpus.jsonl and no corpus/",
    "eval retrieval model --input generative.jsonl": (
        "generative.jsonl:1: a generative example in an embedding file"
    ),
    "eval perplexity model --input embedding.jsonl": (
        "embedding.jsonl:1: an embedding example in a generative file"
    ),
    "eval rag model --input generative.jsonl": (
        "generative.jsonl:1: a generative example in a cached file"
    ),
    "eval retrieval model --input embedding.jsonl --search-dim 49": ("cannot search 49 dimensions"),
    "eval rag model --input rag.jsonl --search-dim 4": "no --index is given",
    "eval rag model --input rag.jsonl --modes auto": "--modes: invalid choice: 'auto'",
    "eval rag model --input rag.jsonl --k 0": "--k: must be at least 1",
    "eval rag model --input rag.jsonl --k 1,x": "--k: must be a whole number, got 'x'",
    "eval rag model --input rag.jsonl --kv int8,int5": (
        "--kv: must be one of native, int8, int4, pca2, got 'int5'"
    ),
    "eval rag model --input rag.jsonl --positions apart": (
        "--positions: must be one of running, colliding, got 'apart'"
    ),
    "eval rag model --input rag.jsonl --k 4": (
        "expected 3 documents beside its own, got 2.*--corpus"
    ),
    "eval rag model --input rag.jsonl --corpus absent --k 2": "absent: no such file",
    "eval rag model --input rag.jsonl --index index --kv int8": (
        "--kv, --positions and --corpus apply to"
    ),
    "eval rag model --input rag.jsonl --output texts.txt": "texts.txt: is a file; name a folder",
    "data distractors --input rag.jsonl --output x.jsonl --rows 9": (
        r"expected at least 9 questions \(--rows\), got 3"
    ),
    "data distractors --input rag.jsonl --output x.jsonl --k 9": (
        "expected 8 documents beside its own, got 2"
    ),
    "data distractors --input generative.jsonl --output x.jsonl": (
        "generative.jsonl:1: a generative example in a"
    ),
    "data distractors --input rag.jsonl --output folder": "folder: is a folder; name a file",
    "data relevance --input embedding.jsonl --output x.jsonl --rows 999": (
        r"expected enough queries for 999 rows \(--rows\), got "
    ),
    "data relevance --input rag.jsonl --output x.jsonl": "rag.jsonl:1: a cached example in a",
    "data relevance --input embedding.jsonl --output folder": "folder: is a folder; name a file",
    "data repeats --input corpus.jsonl --output folder --rows 9": "folder: is a folder; name a file",
    "data repeats --input generative.jsonl --output x.jsonl --rows 9": "generative.jsonl:1",
    "eval rag model --input rag.jsonl --index absent": "absent: there is no index",
    "eval rag model --input rag.jsonl --index i-other": (
        "i-other: this index was made by another model"
    ),
    "eval rag model --input rag.jsonl --modes none --max-new-tokens 100000": (
        "does not fit the model's context of 32768 tokens"
    ),
    # ---- eval: a model behind a URL
    **{
        f"eval {kind} http://127.0.0.1:1 --connections 1": "http://127.0.0.1:1/v1: cannot be reached"
        for kind in (
            "retrieval --input embedding.jsonl",
            "perplexity --input generative.jsonl",
            "rag --input rag.jsonl",
        )
    },
    "eval retrieval model --input embedding.jsonl --split train": (
        "--split train: of a folder's judgements; embedding.jsonl is a file"
    ),
    "eval card folder": "folder: cannot be read \\(Is a directory\\)",
    "eval card strange": "strange: not a record of grit eval",
    "data pydocs --output x --packages ''": "--packages: must be words with commas between, got ''",
    "data pydocs --output x --packages nosuchpackage": (
        "0 documents in nosuchpackage are too few .*; not installed: nosuchpackage"
    ),
    "eval perplexity model --input generative.jsonl --max-length 0": (
        "--max-length: must be at least 1, got 0"
    ),
    "eval rag http://host:1 --input rag.jsonl --index index": "--index: of a MODEL in this process",
    "eval rag http://host:1 --input rag.jsonl --rerank 3": "and no --store is given",
    "eval rag model --input rag.jsonl --store docs": "--store docs: names a store of the URL",
    "eval perplexity model --input generative.jsonl --tokenizer model": (
        "say how a URL is asked, and model is none"
    ),
    "eval perplexity http://h:1 --input generative.jsonl --chat-format x": "invalid choice: 'x'",
    # ---- data decontaminate and tasks
    "data decontaminate embedding.jsonl --output x.jsonl": "required: --against",
    **{
        f"data decontaminate {name} --output x.jsonl --against texts.txt": words
        for name, words in {
            "absent": "absent: no such file",
            "empty": "empty: empty",
            "binary": "binary: binary data",
            "broken": "broken:1: ",
            "list": "list: row 1: expected a JSON object",
            "strange": "strange:1: no known key",
            "folder": "folder: a folder without a prepared dataset",
        }.items()
    },
    **{
        f"data decontaminate embedding.jsonl --output x.jsonl --against {name}": words
        for name, words in {
            "absent": "absent: no such file",
            "empty": "empty: empty",
            "folder": "folder: a folder, not a data file",
            "broken": "broken:2: not valid JSON",
            "strange --against-fields size": "no text of 3 words or more under size",
            "texts.txt --ngram 0": "--ngram: must be at least 1",
            "texts.txt --ngram-share 2": "--ngram-share: expected a number from 0 to 1, got 2",
        }.items()
    },
    "data decontaminate embedding.jsonl --output embedding.jsonl --against texts.txt": (
        "embedding.jsonl: is an input as well"
    ),
    "data decontaminate embedding.jsonl --output folder --against texts.txt": (
        "folder: is a folder; name a file"
    ),
    "data lm-tasks --input folder --output x": "folder: there is no heldout/rag.jsonl",
    "data mteb-tasks --input folder --output x": "folder: there is no heldout/rag.jsonl",
    "data mteb-tasks --input folder --output x --rows 0": "--rows: must be at least 1, got 0",
    # ---- mine
    "mine model --input embedding.jsonl": "required: --output; see grit mine --help",
    **{
        f"mine model --index index --output x.jsonl --input embedding.jsonl {flags}": words
        for flags, words in {
            "--range 5:5": "--range: expected START:STOP",
            "--range 5": "--range: expected START:STOP",
            "--relative-margin some": "--relative-margin: must be a number, got 'some'",
            "--margin inf": "--margin: must be a finite number, got 'inf'",
            "--negatives 0": "--negatives: must be at least 1, got 0",
            "--judge 1": "--judge: expected a probability between 0 and 1, got 1.0",
            "--search-dim 49": "cannot search 49 dimensions",
            "--where 'year > 1'": "'year'; no document has any",
        }.items()
    },
    "mine model --index index --output x.jsonl --input rag.jsonl": (
        "rag.jsonl:1: a cached example in an embedding file"
    ),
    "mine model --index index --output x.jsonl --input absent": "absent: no such file",
    "mine model --index index --output folder --input embedding.jsonl": "folder: is a folder",
    "mine model --index absent --output x.jsonl --input embedding.jsonl": (
        "absent: there is no index"
    ),
    "mine model --corpus absent --output x.jsonl --input embedding.jsonl": "absent: no such file",
    "mine model --index index --output embedding.jsonl --input embedding.jsonl": (
        "embedding.jsonl: is an input as well"
    ),
    # ---- bench
    "bench": "required: encode\\|decode\\|train\\|rag\\|all\\|rerank\\|serve",
    "bench serve": "required: URL; see grit bench serve --help",
    "bench serve http://127.0.0.1:1": "http://127.0.0.1:1: .*is grit serve running there",
    "bench serve ftp://x": "ftp://x: expected http://HOST:PORT",
    "bench serve x --connections 0": "--connections: must be at least 1, got 0",
    "bench rerank": "required: MODEL; see grit bench rerank --help",
    "bench rerank model --candidates 0": "--candidates: must be at least 1, got 0",
    "bench model": "invalid choice: 'model'",
    "bench rag": "required: MODEL; see grit bench rag --help",
    "bench encode model --tokens 5": "unknown flag --tokens, did you mean --batch-tokens\\?",
    "bench rag absent/model": "absent/model: model not found",
    "bench rag model --kv none": "--kv: invalid choice: 'none'",
    "bench rag model --tokens 0": "--tokens: must be at least 1, got 0",
    "bench rag model --repeats 0": "--repeats: must be at least 1",
    "bench rag model --tokens 40000": "this model reads 32768; take --tokens 3",
    "bench rag model --output texts.txt": "texts.txt: is a file; name a folder",
    "bench rag model --token 5": "unknown flag --token, did you mean --tokens\\?",
    # ---- import
    "import model": "required: OUT",
    "import ./absent x": "./absent: model not found: no such directory",
    "import empty x": "empty: a file; expected a model directory",
    "import folder x": "folder/config.json: no such file",
    "import m-truncated x": "m-truncated/model.safetensors: truncated",
    "import m-no-tensor x": "m-no-tensor/model.safetensors: tensor 'model.norm.weight' is missing",
    "import m-other-shape x": (
        "'model.embed_tokens.weight' has shape \\[\\d+, 48\\], config.json asks for \\[\\d+, 64\\]"
    ),
    "import m-no-tokenizer x": "m-no-tokenizer: no tokenizer.json there",
    "import m-pickle x": "m-pickle: only pickled weights there",
    "import m-unknown x": "architecture 'MambaForCausalLM' is not supported",
    "import model empty": "empty: is a file; name a folder",
    "import model folder": "folder: the folder is not empty; remove it or choose another one",
    "import model m-no-tokenizer": "m-no-tokenizer: the folder is not empty",
    "import model empty/x": "empty/x: cannot be written \\(Not a directory\\)",
    "import model /proc/x": "/proc/x: cannot be written",
    "import model x --dtype float16": "--dtype: invalid choice: 'float16'",
    # ---- export
    "export absent x": "absent: no config.yaml there; name the output folder of a training run",
    "export empty x": "empty: no config.yaml there",
    "export folder x": "folder: no config.yaml there",
    "export r-broken x": "r-broken/config.yaml:\\d: not valid YAML",
    "export r-nothing x": "r-nothing/checkpoints: no whole checkpoint there",
    "export r-nothing empty": "empty: is a file; name a folder",
    "export r-nothing folder": "folder: the folder is not empty",
    "export r-nothing empty/x": "empty/x: cannot be written",
    "export r-nothing /proc/x": "/proc/x: cannot be written",
    # ---- train: the configuration
    "train": "required: CONFIG",
    "train absent": "absent: no such file",
    "train empty": "empty: expected a mapping of keys such as 'train:', got nothing",
    "train binary": "binary: cannot be read as text",
    "train latin1": "latin1: cannot be read as text",
    "train list": "list: expected a mapping of keys",
    "train folder": "folder: cannot be read as text .*Is a directory",
    "train broken.yaml": "broken.yaml:2: not valid YAML",
    "train strange.yaml": "strange.yaml: unknown key 'zebra'; known: data, lora, mesh, model",
    "train typo.yaml": "typo.yaml: unknown key 'train.stepps'; did you mean 'train.steps'\\?",
    f"{TRAIN} stray": "unexpected 'stray'; overrides look like --train.steps 100",
    f"{TRAIN} --train.stepss 3": (
        "command line: unknown key 'train.stepss'; did you mean 'train.steps'\\?"
    ),
    f"{TRAIN} --resum auto": "unknown flag --resum; did you mean --resume\\?",
    f"{TRAIN} --resume maybe": "--resume: invalid choice: 'maybe'",
    f"{TRAIN} --train.steps": "--train.steps needs a value",
    f"{TRAIN} --train.steps --mesh.data 1": "--train.steps needs a value",
    f"{TRAIN} --train.steps many": ("command line: train.steps: expected an integer, got 'many'"),
    f"{TRAIN} --train.steps 0": "train.steps: must be at least 1, got 0",
    f"{TRAIN} --train.steps -3": "train.steps: must be at least 1, got -3",
    f"{TRAIN} --train.steps=[1": "command line: --train.steps '\\[1' cannot be read",
    f"{TRAIN} --train 5": "command line: key 'train' expects a mapping",
    f"{TRAIN} --model null": "command line: key 'model' has no value",
    f"{TRAIN} --train.seed -1": "train.seed: must be at least 0, got -1",
    f"{TRAIN} --train.checkpoint_every 0": "train.checkpoint_every: must be at least 1",
    f"{TRAIN} --profile nonsense": (
        "--profile: expected START:STOP, two step numbers such as 10:15, got 'nonsense'"
    ),
    f"{TRAIN} --profile 5:2": "--profile: expected START:STOP",
    f"{TRAIN} --profile 1:20": "--profile 1:20: this run goes from step 0 to 2",
    f"{TRAIN} --optimizer.lr -1": "optimizer.lr: must be a finite number >= 0, got -1.0",
    f"{TRAIN} --optimizer.clip_norm -1": (
        "optimizer.clip_norm: must be above 0 and finite, or null, got -1.0"
    ),
    f"{TRAIN} --optimizer.schedule wobbly": (
        "optimizer.schedule: expected one of linear, cosine, constant"
    ),
    f"{TRAIN} --mesh.data 7": (
        "mesh: data x fsdp x context x tensor = 7 x 1 x 1 x 1 needs 7 devices"
    ),
    # ---- train: data, model, tokenizer, output
    f"{TRAIN} --data.generative_batch -1": "data.generative_batch: must be at least 0",
    f"{TRAIN} --data.generative_batch 0": "every batch size is 0",
    f"{TRAIN} --data.generative []": "data.generative_batch: is 2, but data.generative names no source",
    f"{TRAIN} --data.generative generative.jsonl": (
        "data.generative: expected a list such as \\[a, b\\], got 'generative.jsonl'"
    ),
    f"{TRAIN} --data.generative [absent]": "absent: no such file",
    f"{TRAIN} --data.generative [empty]": "empty: empty",
    f"{TRAIN} --data.generative [binary]": "binary: binary data",
    f"{TRAIN} --data.generative [strange]": "strange:1: no known key",
    f"{TRAIN} --data.generative [cut.jsonl]": (
        "cut.jsonl:2: not valid JSON: Expecting ',' delimiter at column 14"
    ),
    f"{TRAIN} --data.generative [typed.jsonl]": "typed.jsonl:1: turn 2 must be a string, got int",
    f"{TRAIN} --data.generative [blank.jsonl]": "blank.jsonl:1: turn 2 is empty",
    f"{TRAIN} --data.generative [turn.jsonl]": (
        "no usable line; the first problem: turn.jsonl:1: the first user turn fills"
        " generative_max_length \\(64\\)"
    ),
    f"{TRAIN} --data.embedding [instruction.jsonl] --data.embedding_batch 1 --data.group_size 1"
    " --data.passage_max_length 64": (
        "no usable line; the first problem: instruction.jsonl:1: an instruction fills"
        " query_max_length \\(256\\)"
    ),
    f"{TRAIN} --data.generative [embedding.jsonl]": (
        "embedding.jsonl:1: an embedding example in a generative file"
    ),
    f"{TRAIN} --data.on_error ignore": "data.on_error: expected one of stop, skip, got 'ignore'",
    f"{TRAIN} --model.path ./absent": "./absent: model not found: no such directory",
    f"{TRAIN} --model.shape null --model.path ./absent": "./absent: model not found",
    f"{TRAIN} --model.shape null --model.path m-truncated": (
        "m-truncated/model.safetensors: truncated"
    ),
    f"{TRAIN} --model.shape null --model.path m-no-tensor": "tensor 'model.norm.weight' is missing",
    f"{TRAIN} --model.shape null --model.path m-other-shape": (
        "'model.embed_tokens.weight' has shape"
    ),
    f"{TRAIN} --model.shape null --model.path m-unknown": (
        "architecture 'MambaForCausalLM' is not supported"
    ),
    f"{TRAIN} --model.shape null --model.path m-pickle": "m-pickle: only pickled weights",
    f"{TRAIN} --model.shape.num_key_value_heads 0": "num_key_value_heads: must be at least 1, got 0",
    f"{TRAIN} --model.shape.hidden_size big": (
        "model.shape.hidden_size: expected an integer, got 'big'"
    ),
    f"{TRAIN} --model.shape.vocab_size 100": (
        "the tokenizer has \\d+ ids, the model's vocabulary 100"
    ),
    f"{TRAIN} --tokenizer.path m-no-tokenizer": "m-no-tokenizer: no tokenizer.json there",
    f"{TRAIN} --tokenizer.path null": "tokenizer: set tokenizer.path, or tokenizer.train_on",
    f"{TRAIN} --tokenizer.path null --tokenizer.train_on [broken]": "broken:2: not valid JSON",
    "train run.yaml --output empty": "empty: is a file; name a folder",
    "train run.yaml --output empty/x": "empty/x: cannot be written \\(Not a directory\\)",
    "train run.yaml --output /proc/x": "/proc/x: cannot be written",
    "train run.yaml --output null": "key 'output' has no value",
    # ---- data
    "data prepare --output x": "required: SRC",
    "data prepare generative.jsonl": "required: --output",
    "data prepare absent --output x": "absent: no such file",
    "data prepare 'no*.jsonl' --output x": "no\\*.jsonl: no file matches",
    "data prepare empty --output x": "empty: empty",
    "data prepare binary --output x": "binary: binary data",
    "data prepare latin1 --output x": "latin1:1: not UTF-8 text",
    "data prepare strange --output x": "strange:1: no known key",
    "data prepare number --output x": "number:1: ",
    "data prepare folder --output x": "folder: a folder without a prepared dataset",
    "data prepare generative.jsonl --output x --format medi": (
        'generative.jsonl:1: the key "query" is missing \\(medi format\\)'
    ),
    "data prepare generative.jsonl --output x --format tulu": "--format: invalid choice: 'tulu'",
    "data prepare generative.jsonl --output x --languages xx": "--languages: 'xx' is not known",
    "data prepare generative.jsonl --output x --similarity 2": "--similarity: expected a number",
    "data prepare generative.jsonl --output x --tokenizer folder": "folder",
    "data prepare generative.jsonl --output x --min-characters 9999": (
        "generative.jsonl: no row is left; dropped: .*fewer than 9999 characters"
    ),
    "data prepare generative.jsonl --output x --against absent": "absent: no such file",
    "data prepare generative.jsonl --output x --against list": "list:1|list: row 1: expected a JSON",
    "data prepare generative.jsonl --output x --against texts.txt --ngram 0": "--ngram: must be at",
    "data prepare generative.jsonl --output x --against corpus.jsonl --against-fields id": (
        "no text of 3 words or more under id"
    ),
    "data prepare generative.jsonl embedding.jsonl --output x": (
        "an embedding example in a generative file"
    ),
    "data prepare generative.jsonl --output empty": "empty: a file; name a folder",
    "data prepare generative.jsonl --output empty/x": "empty/x: cannot be written",
    "data prepare generative.jsonl --output /proc/x": "/proc/x: cannot be written",
    "data pydocs": "required: --output",
    "data pydocs --output x --seed -1": "--seed: must be at least 0, got -1",
    "data pydocs --output empty": "empty: is a file; name a folder",
    "data pydocs --output empty/x": "empty/x: cannot be written",
    "data pydocs --output /proc/x": "/proc/x: cannot be written",
    # ---- quickstart
    "quickstart --bogus": "unknown flag --bogus",
    "quickstart --seed x": "--seed: must be a whole number",
    "quickstart --seed -1": "--seed: must be at least 0",
    "quickstart --out empty": "empty: is a file; choose another --out",
    "quickstart --out empty/x": "empty/x: cannot be used as output folder \\(Not a directory\\)",
    "quickstart --out /proc/x": "/proc/x: cannot be used as output folder",
    "quickstart --out folder": "folder: the folder is not empty and holds no quickstart",
    "quickstart --out q-claimed --seed 1": (
        "q-claimed holds a quickstart with --seed 0, not with --seed 1"
    ),
    "quickstart --out q-claimed --steps 9": "holds a quickstart without --steps, not with --steps 9",
    "quickstart --out q-claimed --documents 0": "--documents: must be at least 1, got 0",
    "quickstart --out q-damaged": "q-damaged/report.json: not valid JSON",
    "quickstart --out q-strange": "q-strange/quickstart.json: expected a JSON object, got list",
}
