# One image for every process of a fleet: the worker by default, replay, flower and migrations by command.

FROM python:3.13-slim AS build
ARG UV_VERSION=0.13.8
RUN pip install --no-cache-dir --disable-pip-version-check "uv==${UV_VERSION}"
# venv and not `uv venv`: it brings pip along, with which an image built upon this one adds its graphs' packages.
RUN python -m venv /opt/threadmill
WORKDIR /build

# The lock also holds the test tools and the embedded services. Taken as a constraint beside
# --require-hashes, it pins and verifies what the two extras need and installs nothing else. Packages
# have a layer of their own, so that a change of the code does not fetch them again.
COPY pyproject.toml requirements.lock ./
RUN uv pip install --no-cache --python /opt/threadmill/bin/python --compile-bytecode \
    --require-hashes --constraint requirements.lock \
    --requirements pyproject.toml --extra worker --extra flower

COPY README.md LICENSE ./
COPY core core
COPY producers producers
COPY workers workers
COPY dlq dlq
COPY graphs graphs
COPY cli cli
RUN uv pip install --no-cache --python /opt/threadmill/bin/python --compile-bytecode \
    --no-deps --build-constraint requirements.lock .

FROM python:3.13-slim
# A number, so that an orchestrator can see without a user database that this is not root.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /srv/graphs --shell /usr/sbin/nologin threadmill
COPY --from=build /opt/threadmill /opt/threadmill
# What the workers serve: langgraph.json and the graphs that it names. Mount or copy your own over this one.
COPY deploy/graphs /srv/graphs
ENV PATH=/opt/threadmill/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /srv/graphs
USER 10001:10001
CMD ["threadmill", "worker"]
