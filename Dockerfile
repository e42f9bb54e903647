# onp in a container:
#   docker build -t onp .
#   docker run --rm --network none -v "$PWD:/work" -w /work onp --model suspect.safetensors --arch SPEC --norm NAME --data clean --out repaired
# The suspicious file is read in a container without network, as a user without rights.
#
# BASE: for NVIDIA GPUs an image with Python, nvcc and a CUDA build of torch, and CUDA=ON.
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
ARG CUDA=OFF
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python -m venv --system-site-packages /opt/onp && ONP_CUDA=${CUDA} /opt/onp/bin/pip install --no-cache-dir -c /src/constraints.txt /src

FROM ${BASE}
COPY --from=build /opt/onp /opt/onp
RUN useradd --create-home onp
USER onp
ENTRYPOINT ["/opt/onp/bin/python", "-m", "onp.defend"]
