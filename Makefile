# hv: one Makefile, no recursion, no generated makefiles. Objects and programs go to $(BUILD); the source tree stays clean.

BUILD  ?= build
CUDA   ?= auto
ARCH   ?= $(if $(CI),all,native)
SAN    ?=
V      ?= 0
# Warnings are errors where the project is built for itself; a newer compiler of a user's must not stop him.
WERROR ?= $(if $(CI),1,0)
PREFIX ?= /usr/local
DESTDIR ?=
CC     ?= gcc
OPT    ?= -O2 -g

Q := $(if $(filter 1,$(V)),,@)
say = @$(if $(filter 1,$(V)),:,printf '  %-7s %s\n' "$(1)" "$(2)")

.DEFAULT_GOAL := all
.SUFFIXES:
.DELETE_ON_ERROR:

# ---- what there is -----------------------------------------------------------------------------------------------------

TOOLS    := $(patsubst tools/%/,%,$(sort $(dir $(wildcard tools/*/*.c))))
SCRIPTS  := $(filter-out $(TOOLS),$(patsubst tools/%/,%,$(sort $(dir $(wildcard tools/*/*)))))
MANUALS  := $(wildcard tools/*/*.1)
LIB_SRC  := $(sort $(wildcard lib/*/*.c kernels/cpu/*.c))
UNIT_SRC := $(sort $(wildcard tests/unit/test_*.c))
GOLD_SRC := $(sort $(wildcard tests/golden/*.c))
FUZZ_SRC := $(sort $(wildcard tests/fuzz/fuzz_*.c))
BENCH_SRC := $(sort $(wildcard tests/bench/*.c))
LIPSYNC   := $(BUILD)/tests/lipsync/lipsync
GPU_SRC  := $(sort $(wildcard tests/gpu/*.c))
HELP_SRC := $(sort $(wildcard tests/helper/*.c))
CUDA_SRC := $(sort $(wildcard kernels/cuda/*.cu))

NVCC ?= $(shell command -v nvcc 2>/dev/null || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
ifeq ($(CUDA),1)
  ifeq ($(NVCC),)
    $(error CUDA=1, but nvcc is not on the PATH: install the CUDA toolkit, name it with NVCC=, or use CUDA=0)
  endif
  ifeq ($(CUDA_SRC),)
    $(error CUDA=1, but this tree has no kernels/cuda: hv computes on the CPU)
  endif
endif
WITH_CUDA := $(if $(and $(filter-out 0,$(CUDA)),$(NVCC),$(CUDA_SRC)),1)

# ---- flags -------------------------------------------------------------------------------------------------------------

WARN     := -Wall -Wextra -Wshadow -Wconversion -Wvla -Werror=implicit-function-declaration \
            -Werror=int-conversion -Werror=incompatible-pointer-types $(if $(filter 1,$(WERROR)),-Werror)
CPPFLAGS += -Ilib -I. -D_POSIX_C_SOURCE=200809L
# Contraction is off so that one source gives one result: where a fused multiply-add is wanted it is written.
CFLAGS   += -std=c11 $(OPT) $(WARN) -fopenmp -ffp-contract=off -fno-math-errno -pthread $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
LDFLAGS  += -fopenmp -pthread $(if $(SAN),-fsanitize=$(SAN))
LDLIBS   += -lsndfile -lsoxr -lpng -ljpeg -lpcre2-8 -ljansson -lcrypto -lz -lm
AVX2     := -mavx2 -mfma -mf16c
AVX512   := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c
simd      = $(if $(findstring _avx512.c,$<),$(AVX512),$(if $(findstring _avx2.c,$<),$(AVX2)))

ifeq ($(WITH_CUDA),1)
  CPPFLAGS += -DHV_CUDA_BACKEND
  LDLIBS   += -L$(dir $(NVCC))../lib64 -Wl,-rpath,$(abspath $(dir $(NVCC))../lib64) -lcudart_static -ldl -lrt -lstdc++
  # 90a, not 90: the matrix instructions of Hopper belong to the one architecture alone. native: those of the GPUs in this machine,
  # which takes a fifth of the time; all where there is none that can be used.
  GPUS      = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | awk '/^[0-9]+$$/ && $$1 >= 80 { print $$1 == 90 ? "90a" : $$1 }' | sort -u)
  ARCHS    := $(if $(filter native,$(ARCH)),$(GPUS),$(filter-out all,$(subst ;, ,$(ARCH))))
  ARCHS    := $(or $(ARCHS),80 86 89 90a 120)
  GENCODE  := $(foreach a,$(ARCHS),-gencode=arch=compute_$(a),code=sm_$(a))
  # Kernels for five architectures are small in a program only when they are packed well (nvcc 12.8 and later).
  PACKED   := $(if $(shell $(NVCC) --help | grep -m1 -e --compress-mode),--compress-mode=size)
  NVCCFLAGS += -O3 -std=c++17 $(PACKED) $(GENCODE) $(if $(filter 1,$(WERROR)),-Werror all-warnings) -Xcompiler -Wall,-Wextra -Xptxas -v
# What ptxas says of registers and spills is kept beside the object; tests/tools/spills.sh reads it.
endif

# ---- objects and programs ----------------------------------------------------------------------------------------------

LIB      := $(BUILD)/libhv.a
LIB_OBJ  := $(LIB_SRC:%.c=$(BUILD)/%.o) $(if $(WITH_CUDA),$(CUDA_SRC:%.cu=$(BUILD)/%.cu.o))
BIN      := $(TOOLS:%=$(BUILD)/bin/%) $(SCRIPTS:%=$(BUILD)/bin/%)
UNIT_BIN := $(UNIT_SRC:%.c=$(BUILD)/%)
FUZZ_BIN := $(FUZZ_SRC:%.c=$(BUILD)/%)
BENCH_BIN := $(BENCH_SRC:%.c=$(BUILD)/%)
GPU_BIN  := $(GPU_SRC:%.c=$(BUILD)/%)
HELP_BIN := $(HELP_SRC:%.c=$(BUILD)/%)
GOLD_BIN := $(BUILD)/tests/golden/golden
C_OBJ    := $(filter %.o,$(LIB_SRC:%.c=$(BUILD)/%.o) $(foreach t,$(TOOLS),$(patsubst %.c,$(BUILD)/%.o,$(wildcard tools/$(t)/*.c))) \
            $(UNIT_SRC:%.c=$(BUILD)/%.o) $(GOLD_SRC:%.c=$(BUILD)/%.o) $(FUZZ_SRC:%.c=$(BUILD)/%.o) $(BENCH_SRC:%.c=$(BUILD)/%.o) \
            $(HELP_SRC:%.c=$(BUILD)/%.o) $(GPU_SRC:%.c=$(BUILD)/%.o) $(LIPSYNC).o \
            $(BUILD)/tests/unit/ref_ops.o $(BUILD)/tests/fuzz/replay.o)

all: $(BIN) ## the programs, in build/bin

$(BUILD)/bin/%: $(LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -o $@

$(foreach t,$(TOOLS),$(eval $(BUILD)/bin/$(t): $(patsubst %.c,$(BUILD)/%.o,$(wildcard tools/$(t)/*.c))))

$(SCRIPTS:%=$(BUILD)/bin/%):
	$(call say,INSTALL,$@)
	@mkdir -p $(@D)
	$(Q)install -m 755 $< $@

$(foreach t,$(SCRIPTS),$(eval $(BUILD)/bin/$(t): tools/$(t)/$(t)))

$(LIB): $(LIB_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && ar rcs $@ $^

$(BUILD)/%.o: %.c $(BUILD)/flags | $(BUILD)/deps
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(simd) -MMD -MP -c $< -o $@

$(BUILD)/%.cu.o: %.cu $(BUILD)/flags | $(BUILD)/deps
	$(call say,NVCC,$<)
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(CPPFLAGS) $(NVCCFLAGS) -MMD -MP -c $< -o $@ >$@.ptxas 2>&1 || { cat $@.ptxas; rm -f $@; exit 1; }
	$(Q)awk -f tests/gpu/ptxas.awk $@.ptxas

$(UNIT_BIN): $(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(BUILD)/tests/unit/ref_ops.o $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -lcmocka -o $@

$(GPU_BIN): $(BUILD)/tests/gpu/%: $(BUILD)/tests/gpu/%.o $(BUILD)/tests/unit/ref_ops.o $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -Wl,--as-needed -lcmocka -o $@

$(FUZZ_BIN): $(BUILD)/tests/fuzz/%: $(BUILD)/tests/fuzz/%.o $(BUILD)/tests/fuzz/replay.o $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -o $@

$(BENCH_BIN): $(BUILD)/%: $(BUILD)/%.o $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -lopenblas -o $@

$(HELP_BIN): $(BUILD)/%: $(BUILD)/%.o $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -o $@

$(GOLD_BIN): $(GOLD_SRC:%.c=$(BUILD)/%.o) $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -o $@

$(LIPSYNC): $(LIPSYNC).o $(LIB)
	$(call say,LD,$@)
	$(Q)$(CC) $(LDFLAGS) $(filter %.o,$^) $(LIB) $(LDLIBS) -o $@

# A stamp with the flags: what they touch is rebuilt when they change.
FLAGS = $(CC) $(CPPFLAGS) $(CFLAGS) $(AVX2) $(AVX512) $(LDFLAGS) $(LDLIBS) $(NVCCFLAGS)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(FLAGS)' | cmp -s - $@ || printf '%s\n' '$(FLAGS)' > $@

# Libraries and programs that the build needs: checked by a plain make, installed by demo, test and deps.
$(BUILD)/deps: deps.sh
	@mkdir -p $(@D)
	@./deps.sh $(if $(filter demo test test-gpu golden deps bench fuzz,$(MAKECMDGOALS)),--install,--check)
	@touch $@

-include $(C_OBJ:.o=.d) $(if $(WITH_CUDA),$(CUDA_SRC:%.cu=$(BUILD)/%.cu.d))

# ---- what people call --------------------------------------------------------------------------------------------------

GOLDEN ?= tests/golden

deps: $(BUILD)/deps ## install the libraries and programs that are missing

demo: all ## build, let a cartoon portrait speak with the tiny model of examples/tiny, say where the MP4 is
	$(Q)BIN=$(abspath $(BUILD)/bin) OUT=$(BUILD)/demo examples/demo.sh

test: all $(UNIT_BIN) $(GOLD_BIN) $(FUZZ_BIN) $(HELP_BIN) $(LIPSYNC) ## build and run every test; the last line counts them
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/run.sh

check: test ## the same

lipsync: all $(LIPSYNC) ## do the mouths of held-out portraits follow held-out voices? MODEL=DIR: with another model
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) MODEL=$(MODEL) tests/lipsync/lipsync.sh

faces: all ## does the detector find held-out faces, and none where there are none? MODEL=DIR
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) MODEL=$(MODEL) tests/lipsync/faces.sh

compare: all $(LIPSYNC) ## one clip with other weights, caches, steps: how far apart? F32=DIR: the model in f32
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) MODEL=$(MODEL) F32=$(F32) tests/lipsync/compare.sh

test-gpu: all $(UNIT_BIN) $(GOLD_BIN) $(GPU_BIN) ## what needs a GPU: operations, goldens, programs, compute-sanitizer
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/gpu/run.sh

bench-gpu: all ## time and memory of the full-size networks on a GPU beside PyTorch in the same run
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/gpu/bench.sh
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/gpu/bench_vae.sh
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/gpu/bench_text.sh
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/gpu/bench_render.sh
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/gpu/bench_state.sh

golden: all $(GOLD_BIN) ## run the goldens below GOLDEN=DIR
	$(Q)$(GOLD_BIN) --bin $(BUILD)/bin $(GOLDEN)

bench: all $(BENCH_BIN) $(HELP_BIN) ## time operations and stages against OpenBLAS in the same run
	$(Q)BIN=$(abspath $(BUILD)/bin) BUILD=$(BUILD) tests/bench/run.sh

# A file of weights may ask for 64 MiB more than it has; a picture of a few bytes for all that a picture may have.
# With clang: libFuzzer and the sanitizers, on objects of their own, whose loops are the scalar ones. Without: our own mutations (use SAN=address,undefined).
CLANG    ?= $(shell command -v clang 2>/dev/null)
FUZZ     ?= $(FUZZ_SRC:tests/fuzz/fuzz_%.c=%)
LF       := $(BUILD)/libfuzzer
LF_FLAGS := -std=c11 -O1 -g -w -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -pthread \
            -ffp-contract=off -fno-math-errno -idirafter $(shell $(CC) -print-file-name=include) '-D__builtin_cpu_supports(x)=0'
LF_BIN   := $(FUZZ:%=$(LF)/fuzz_%)

$(LF)/%.o: %.c
	$(call say,CLANG,$<)
	@mkdir -p $(@D)
	$(Q)$(CLANG) $(CPPFLAGS) $(LF_FLAGS) -fsanitize=fuzzer-no-link $(simd) -MMD -MP -c $< -o $@

$(LF)/libhv.a: $(LIB_SRC:%.c=$(LF)/%.o)
	$(Q)rm -f $@ && ar rcs $@ $^

$(LF_BIN): $(LF)/fuzz_%: $(LF)/tests/fuzz/fuzz_%.o $(LF)/libhv.a
	$(call say,LD,$@)
	$(Q)$(CLANG) -fsanitize=fuzzer,address,undefined -pthread $^ $(LDLIBS) -l:libgomp.so.1 -o $@

-include $(LIB_SRC:%.c=$(LF)/%.d) $(FUZZ_SRC:%.c=$(LF)/%.d)

ifneq ($(CLANG),)
fuzz: $(LF_BIN) ## fuzz for FUZZ_SECONDS (60) a target, or only those of FUZZ="pt gguf"; libFuzzer with clang
	$(Q)for t in $(FUZZ); do mkdir -p $(LF)/found/$$t && echo "== $$t" && $(LF)/fuzz_$$t -max_total_time=$${FUZZ_SECONDS:-60} -timeout=1 \
	    -malloc_limit_mb=$$(case $$t in image) echo 1100 ;; *) echo 65 ;; esac) -print_final_stats=1 -verbosity=0 -artifact_prefix=$(LF)/ $(LF)/found/$$t tests/fuzz/corpus/$$t || exit 1; done
else
fuzz: $(FUZZ_BIN)
	$(Q)for t in $(FUZZ); do $(BUILD)/tests/fuzz/fuzz_$$t --seconds $${FUZZ_SECONDS:-60} tests/fuzz/corpus/$$t || exit 1; done
endif

install: all ## programs and manual pages to PREFIX, below DESTDIR
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(MANUALS) $(DESTDIR)$(PREFIX)/share/man/man1

uninstall: ## what install put there
	rm -f $(patsubst %,$(DESTDIR)$(PREFIX)/bin/%,$(notdir $(BIN)))
	rm -f $(patsubst %,$(DESTDIR)$(PREFIX)/share/man/man1/%,$(notdir $(MANUALS)))

compile_commands.json: Makefile ## for editors
	$(call say,GEN,$@)
	$(Q){ echo '['; sep=; for f in $(LIB_SRC) $(wildcard tools/*/*.c) $(UNIT_SRC) $(GOLD_SRC) $(FUZZ_SRC) $(BENCH_SRC) $(GPU_SRC); do \
	    printf '%s{"directory":"%s","file":"%s","command":"%s -c %s"}' "$$sep" '$(CURDIR)' "$$f" '$(CC) $(CPPFLAGS) $(CFLAGS)' "$$f"; \
	    sep=','; done; echo ']'; } > $@

clean: ## remove $(BUILD)
	rm -rf $(BUILD)

help: ## this list
	@sed -n 's/^\([a-z_.-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 30

.PHONY: all deps demo test test-gpu check lipsync faces compare golden bench bench-gpu fuzz install uninstall clean help FORCE
