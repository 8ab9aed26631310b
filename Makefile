# Copyright (c) The hapgent.agent contributors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

export PATH := $(CURDIR)/.cache/venv/bin:$(PATH)
# Lint and unit tests use the checkout itself; test hosts use the collection as users install it.
CHECKOUT := $(CURDIR)/.cache/collections
INSTALLED := $(CURDIR)/.cache/installed
export ANSIBLE_COLLECTIONS_PATH := $(CHECKOUT)
# Without bytecode, each of the thousands of programs that the tests start would compile its imports again.
unexport PYTHONDONTWRITEBYTECODE
# The longest first.
SCENARIOS := scenario-rolling scenario-default scenario-role scenario-sysv scenario-following scenario-settling
demo demo-down images shell $(SCENARIOS): export ANSIBLE_COLLECTIONS_PATH := $(INSTALLED)

.DEFAULT_GOAL := help
.PHONY: help demo demo-shell demo-down test check lint unit robustness playbooks hosts images build docs shell $(SCENARIOS)

help:
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 20

demo: ## start a small fleet, then drain, reboot and restart its hosts under load
	tests/tools/install hosts
	tests/tools/with-hosts python molecule/demo/show.py

demo-shell: ## open a shell on a host of the demo: make demo-shell HOST=demo-web1
	@if [ -z "$(HOST)" ]; then \
		echo "Usage: make demo-shell HOST=NAME. These hosts are running (make demo starts them):"; \
		tests/tools/with-hosts podman ps --filter name=^demo- --format '{{.Names}}'; exit 1; \
	fi
	@tests/tools/with-hosts podman exec --interactive --tty $(HOST) bash

demo-down: ## remove the demo
	MOLECULE_EPHEMERAL_DIRECTORY=$(CURDIR)/.cache/demo tests/tools/with-hosts molecule destroy --scenario-name demo

test: ## run everything: check, robustness, playbooks and hosts
	@mkdir -p .cache && rm -f .cache/stages
	@result=0; $(MAKE) --no-print-directory check robustness playbooks hosts || result=$$?; \
		echo "== stages"; cat .cache/stages; exit $$result

check: ## run lint and the unit tests, which need no test hosts, side by side
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint unit

lint: ## check format, types, documentation and licences; run ansible-lint and ansible-test sanity
	@tests/tools/stage install tests/tools/install
	@tests/tools/stage lint tests/tools/lint

# Workers get one test at a time, the slowest tests first, so that no worker ends with a slow one.
unit: TESTS = tests/unit tests/agent
unit: ## test the agent, modules and packaging with real processes, sockets and files; TESTS=PATH runs a part
	@tests/tools/stage install tests/tools/install
	@PYTHONPATH=$(CHECKOUT) tests/tools/stage unit pytest --numprocesses 6 --maxschedchunk 1 $(TESTS)

# Two tests at a time, because many of them wait or use only one processor.
robustness: ## test the agent against signal storms, floods, kills and full disks, in separate namespaces
	@tests/tools/stage install tests/tools/install
	@tests/tools/stage robustness tests/tools/isolated env PYTHONPATH=$(CHECKOUT) \
		pytest --numprocesses 2 --maxschedchunk 1 tests/robustness

playbooks: TESTS = tests/playbooks
playbooks: ## run the playbooks on simulated fleets, with each release of Ansible; or those in TESTS
	@tests/tools/stage install tests/tools/install
	@PYTHONPATH=$(CHECKOUT) tests/tools/stage playbooks pytest --numprocesses 4 --maxschedchunk 1 $(TESTS)

hosts: images ## run the molecule scenarios on real hosts with a real HAProxy, side by side
	@$(MAKE) --no-print-directory --jobs 3 --output-sync=target $(SCENARIOS)

images:
	@tests/tools/stage "install for hosts" tests/tools/install hosts
	@echo bullseye bookworm trixie bookworm-sysvinit | tests/tools/stage images \
		tests/tools/with-hosts xargs -n 1 -P 3 molecule/shared/build-image localhost/hapgent-test-host

$(SCENARIOS): scenario-%:
	@tests/tools/stage $@ tests/tools/with-hosts molecule test --scenario-name $*

docs: ## update the tables of variables in the READMEs of the roles, and the drawings for dark pages
	tests/tools/install
	python tests/tools/role_readme.py
	for drawing in overview drain; do \
		sed -f tests/tools/dark.sed docs/images/$$drawing.svg >docs/images/$$drawing-dark.svg; \
	done

shell: ## open a shell with the environment of the scenarios, to run molecule manually
	tests/tools/install hosts
	@$${SHELL:-/bin/sh}

build: ## build the agent's zipapp in the role from its source in files/
	python3 files/build.py
