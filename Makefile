# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

export PATH := $(CURDIR)/.cache/venv/bin:$(PATH)
# The tree itself for lint and unit tests; on hosts, the collection as users have it.
CHECKOUT := $(CURDIR)/.cache/collections
INSTALLED := $(CURDIR)/.cache/installed
export ANSIBLE_COLLECTIONS_PATH := $(CHECKOUT)
demo demo-down hosts-ready shell scenario-default scenario-settling scenario-rolling: export ANSIBLE_COLLECTIONS_PATH := $(INSTALLED)

.DEFAULT_GOAL := help
.PHONY: help demo demo-shell demo-down test check lint unit robustness playbooks hosts hosts-ready build docs shell

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20

demo: ## watch it work: a small fleet is drained, rebooted, and restarted under load
	tests/tools/install hosts
	tests/tools/with-hosts python molecule/demo/show.py

demo-shell: ## a shell on a host of the demo: make demo-shell HOST=demo-web1
	@if [ -z "$(HOST)" ]; then \
		echo "Name a host, make demo-shell HOST=NAME, that runs (make demo starts them):"; \
		tests/tools/with-hosts podman ps --filter name=^demo- --format '{{.Names}}'; exit 1; \
	fi
	@tests/tools/with-hosts podman exec --interactive --tty $(HOST) bash

demo-down: ## take the demo down
	MOLECULE_EPHEMERAL_DIRECTORY=$(CURDIR)/.cache/demo tests/tools/with-hosts molecule destroy --scenario-name demo

# Scenarios wait more than they compute, so the playbooks run beside them, and let them go first.
test: ## everything: check, what is meant to break the agent, the playbooks, the scenarios on real hosts
	@mkdir -p .cache && rm -f .cache/stages
	@result=0; \
		{ $(MAKE) --no-print-directory check robustness hosts-ready && $(MAKE) --no-print-directory --jobs 3 \
			--output-sync=target scenario-default scenario-rolling playbooks scenario-settling; } || result=$$?; \
		echo "== stages"; cat .cache/stages; exit $$result

check: lint unit ## what needs no test hosts: lint and unit tests

lint: ## format, types, documentation, licences, ansible-lint, ansible-test sanity
	@tests/tools/stage install tests/tools/install
	@tests/tools/stage lint tests/tools/lint

# Workers get one test at a time, the slowest tests first, so that no worker ends with a slow one.
unit: TESTS = tests/unit tests/agent
unit: ## agent, modules and packaging, with real processes, sockets and files; or those in TESTS
	@tests/tools/stage install tests/tools/install
	@PYTHONPATH=$(CHECKOUT) tests/tools/stage unit pytest --numprocesses 4 --maxschedchunk 1 $(TESTS)

robustness: ## storms, floods, kills and full disks against the agent, in namespaces of their own
	@tests/tools/stage install tests/tools/install
	@tests/tools/stage robustness tests/tools/isolated env PYTHONPATH=$(CHECKOUT) pytest tests/robustness

playbooks: TESTS = tests/playbooks
playbooks: ## the playbooks on simulated fleets, with each release of Ansible; or those in TESTS
	@tests/tools/stage install tests/tools/install
	@PYTHONPATH=$(CHECKOUT) tests/tools/stage playbooks nice -n 5 pytest --numprocesses 4 --maxschedchunk 1 $(TESTS)

hosts: hosts-ready ## the molecule scenarios on real systemd hosts with a real HAProxy, two at a time
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target scenario-default scenario-rolling scenario-settling

hosts-ready:
	@tests/tools/stage "install for hosts" tests/tools/install hosts
	@echo bullseye bookworm trixie | tests/tools/stage images \
		tests/tools/with-hosts xargs -n 1 -P 3 molecule/shared/build-image localhost/hapgent-test-host

scenario-%:
	@tests/tools/stage $@ tests/tools/with-hosts molecule test --scenario-name $*

docs: ## the tables of variables in the READMEs of the roles, and the drawings for dark pages
	tests/tools/install
	python tests/tools/role_readme.py
	for drawing in overview drain; do \
		sed -f tests/tools/dark.sed docs/images/$$drawing.svg >docs/images/$$drawing-dark.svg; \
	done

shell: ## a shell with the environment of the scenarios, to run molecule by hand
	tests/tools/install hosts
	@$${SHELL:-/bin/sh}

build: ## the agent's zipapp in the role, from its source in files/
	python3 files/build.py
