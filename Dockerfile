# One image for both processes: the API by default, the worker with `python worker.py`.
# Pin the base image by its digest in your own copy (python:3.13-slim-bookworm@sha256:...): Dependabot then updates both.
FROM python:3.13-slim-bookworm AS build
COPY requirements.lock .
# Wheels only, so neither image needs a compiler.
RUN pip install --no-cache-dir --only-binary=:all: --require-hashes --prefix=/packages -r requirements.lock

FROM python:3.13-slim-bookworm
COPY --from=build /packages /usr/local
WORKDIR /srv
COPY worker.py .
COPY app app
# Compiled here: the user below may write no bytecode, and the workflow sandbox imports order.py for every order.
RUN python -m compileall -q worker.py app
USER 10001:10001
ENV PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["python", "-m", "uvicorn", "app.api.main:app", "--host", "0.0.0.0", "--port", "8000", \
     "--no-access-log", "--timeout-graceful-shutdown", "5"]
