# onp in a container. On a machine without a GPU:
#   docker build -t onp .
#   docker run --rm --network none --user "$(id -u):$(id -g)" -v "$PWD:/work" onp scan suspect.safetensors --arch SPEC --norm NAME --data clean --out scan
# The suspicious file is read without network and without rights.
# A base image that has PyTorch's CPU build makes it gigabytes smaller.
# For NVIDIA GPUs take an image that has Python, nvcc and a CUDA build of torch:
#   docker build -t onp --build-arg BASE=IMAGE --build-arg CUDA=ON .
#   docker run --gpus all ... as above
ARG BASE=python:3.11-slim
FROM ${BASE} AS build
ARG CUDA=OFF
# The compiler of the distribution, whichever version it has.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv --system-site-packages /opt/onp && \
    ONP_CUDA="${CUDA}" /opt/onp/bin/pip install --no-cache-dir -c /src/constraints.txt '/src[bom]'

FROM ${BASE}
COPY --from=build /opt/onp /opt/onp
# Whoever runs it has a home folder: libraries keep their caches there.
ENV PATH=/opt/onp/bin:${PATH} HOME=/tmp
WORKDIR /work
USER 65534:65534
ENTRYPOINT ["onp"]
