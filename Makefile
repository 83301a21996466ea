# Every target sets up a virtual environment in .venv by itself; `make PYTHON=python3.12 test` picks another Python.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-bridges test-data test-cluster lint docs bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.installed  ## Make the built-in world, train a tiny CLIP in two stages, measure it
	$(BIN)/clipa demo

test: $(VENV)/.installed-test  ## The plain test run: no accelerator, no network
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-bridges: $(VENV)/.installed-bridges  ## Weights and tokens against torch, transformers and open_clip, on the CPU
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/test_bridge_*.py

test-data: $(VENV)/.installed-data $(VENV)-img2dataset/.installed  ## Shards behind HTTP, in an S3 bucket, and of the real img2dataset, on servers of this machine
	$(BIN)/python -m pytest tests/test_remote.py
	IMG2DATASET=$(VENV)-img2dataset/bin/img2dataset $(BIN)/python -m pytest tests/peer_img2dataset.py

test-cluster: $(VENV)/.installed-test  ## Several processes: SLURM and Open MPI on this machine, signals, every recipe
	@tests/install_cluster.sh || exit $$(( $$? == 3 ? 0 : 1 )); \
	$(BIN)/python -m pytest -s tests/cluster_slurm.py tests/cluster_runs.py

lint: $(VENV)/.installed-test  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-docs  ## Build the documentation into site/; a broken link or reference fails
	$(BIN)/mkdocs build --strict --quiet

# word_class_accuracy.py needs a corpus, which its first lines name; precision_accuracy.py trains for an hour.
NO_BENCH = benchmarks/_% %/word_class_accuracy.py %/precision_accuracy.py %/table.py

bench: $(VENV)/.installed-bench  ## The CPU benchmarks; results go to benchmarks/results/ and into the README's table
	for script in $(filter-out $(NO_BENCH), $(wildcard benchmarks/*.py)); do \
		$(BIN)/python $$script || exit 1; \
	done
	$(BIN)/python benchmarks/table.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e . -c constraints.txt
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[fast,test,dev]" -c constraints.txt
	touch $@

# open_clip and timm ask for torchvision, whose build must match torch's; the tests stand in for what they import of it.
$(VENV)/.installed-bridges: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet -e ".[fast,test,torch]" transformers regex sentencepiece -c constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps open_clip_torch timm -c constraints.txt
	touch $@

$(VENV)/.installed-data: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet -e ".[test,remote]" "moto[s3]" flask flask-cors -c constraints.txt
	touch $@

# Its old pins keep it apart. TensorFlow is what it writes TFRecords with; nothing here ever imports it.
$(VENV)-img2dataset/.installed:
	$(PYTHON) -m venv $(VENV)-img2dataset
	$(VENV)-img2dataset/bin/python -m pip install --quiet img2dataset==1.47.0 tensorflow-cpu==2.21.0 tensorflow-io==0.37.1
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-bridges
	$(BIN)/python -m pip install --quiet opencv-python-headless scikit-image scikit-learn webdataset -c constraints.txt
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[docs]" -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-img2dataset runs site .pytest_cache .ruff_cache
