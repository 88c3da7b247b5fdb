# A table of videos as a Makefile: every row of a CSV file is a target.
#
#     make -f examples/batch.mk CSV=rows.csv OUT=videos HV_MODEL=model HV_DEVICES=cuda:0,cuda:1
#     make -f examples/batch.mk CSV=rows.csv OUT=videos status                # how far it is
#
# The header names the columns videoid,image,audio,prompt and, if wanted, fps and options, in any order; others are ignored.
# options: options of hv for that row alone, as --steps 30 --face 2. Paths are relative to where make runs. HVFLAGS goes to every hv.
#
# Rows with the same portrait, sound, or portrait and prompt share what is made of it. HV_DEVICES: devices that take a row each;
# with cuda:0,cuda:0 one takes two, and without it the programs wait for the GPU themselves. Whatever is killed, be it make, a
# program or the machine, the next make goes on after the last finished step of each row. A row that is edited is made again, and
# no other. A row that fails leaves the others alone (KEEP_GOING= ends at the first one).
#
# OUT/VIDEOID.mp4 is the video; OUT/rows.jsonl has a line for each row that ended, OUT/stages.jsonl for each shared stage.

CSV ?= rows.csv
OUT ?= videos
HV  ?= hv
HVFLAGS ?=
HV_DEVICES ?=
KEEP_GOING ?= 1
here := $(dir $(lastword $(MAKEFILE_LIST)))
work := $(OUT)/.batch
export HV_MODEL HV HVFLAGS HV_DEVICES OUT

# As many rows at once as there are devices, and two stages of later rows beside them. A -j of the command line stands above it.
comma := ,
devices := $(words $(subst $(comma), ,$(HV_DEVICES)))
ROWS :=
jobs := $(if $(HV_DEVICES),-j$(shell expr $(devices) + 2))
MAKEFLAGS += $(if $(KEEP_GOING),-k) $(jobs)

# A row that was killed between its video and the removal of its state.
left := $(wildcard $(work)/*.state $(work)/*.latent.st)

all: videos $(if $(left),tidy)
.PHONY: all videos tidy status ids clean FORCE
.DELETE_ON_ERROR:
.SUFFIXES:

run := sh $(here)row.sh
# A stage whose model changed is made again.
part = $(foreach p,$(1),$(wildcard $(HV_MODEL)/$(p)/config.json $(HV_MODEL)/$(p)/model.safetensors))
model_text  := $(call part,text_encoder text_encoder_2)
model_audio := $(call part,audio_encoder)
model_face  := $(call part,face_detector)
model_ref   := $(call part,vae)
model_row   := $(call part,transformer vae)

# What the rules depend on beside the table.
$(work)/settings: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(subst ','\'',$(HV) $(HV_MODEL) $(HVFLAGS))' | cmp -s - $@ || printf '%s\n' '$(subst ','\'',$(HV) $(HV_MODEL) $(HVFLAGS))' >$@

$(work)/rules.mk: $(CSV) $(work)/settings $(here)rows.awk
	@flock $(work)/lock env LC_ALL=C awk -v out='$(OUT)' -v dir='$(work)' -f $(here)rows.awk '$(CSV)' >$@.$$$$ && mv $@.$$$$ $@ || { rm -f $@.$$$$; exit 3; }

ifeq ($(filter clean help,$(MAKECMDGOALS)),)
include $(work)/rules.mk
endif

videos: $(ROWS)

# A number for each row, for engines that count: row-1 ..
$(foreach n,$(shell seq $(words $(ROWS))),$(eval row-$(n): $(word $(n),$(ROWS))))

ids:
	@printf '%s\n' $(ROWS)

tidy:
	@$(run) tidy

status:
	@$(run) status

# What is kept to go on and to share; the videos stay.
clean:
	rm -rf $(work)
