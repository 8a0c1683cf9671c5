# docker build -f docker/cuda.Dockerfile -t portraitmatting:cuda .
# docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" portraitmatting:cuda folder photos
FROM python:3.12-slim-bookworm

# What opencv-python and numba link against, and slim images lack.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libgl1 libglib2.0-0 libgomp1 \
    && rm -rf /var/lib/apt/lists/*

# PyTorch brings CUDA along; of the host only the driver and NVIDIA's container toolkit are needed.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/cache/numba

WORKDIR /opt/portraitmatting
COPY pyproject.toml README.md LICENSE ./
COPY checkpoints checkpoints
COPY portraitmatting portraitmatting
RUN pip install -e .

RUN useradd --create-home --uid 1000 matting && install --directory --mode 1777 /var/cache/numba /work
USER 1000
WORKDIR /work

# Compiles what would else be compiled in every container, and shows that the image works.
COPY examples/astronaut.jpg /opt/portraitmatting/examples/
RUN python -m portraitmatting folder /opt/portraitmatting/examples /tmp/mattes \
    && rm -r /tmp/mattes \
    && chmod -R a+rwX /var/cache/numba/*

ENTRYPOINT ["python", "-m", "portraitmatting"]
CMD ["--help"]
