# A table of videos as a Makefile: every row of a CSV file is a target.
#
#     make -f examples/batch.mk CSV=rows.csv OUT=videos HV_MODEL=model -j2
#
# The header names the columns videoid,image,audio,prompt,fps in any order; others are ignored. Paths are relative to where
# make runs. OUT/VIDEOID.mp4 is made by hv, which writes aside and renames: a killed run leaves only whole videos, and the
# next make goes on where it stopped. A row that is edited is made again, and no other. HVFLAGS goes to every hv.

CSV ?= rows.csv
OUT ?= videos
HV  ?= hv
HVFLAGS ?=
here := $(dir $(lastword $(MAKEFILE_LIST)))
export HV_MODEL

all: videos
.PHONY: all videos
.DELETE_ON_ERROR:

# One fragment with a rule a row, and one file a row with its arguments, rewritten only when they change.
$(OUT)/.rows/rules.mk: $(CSV) $(here)rows.awk
	@mkdir -p $(@D)
	@awk -v out='$(OUT)' -f $(here)rows.awk '$(CSV)' > $@.new
	@mv $@.new $@

ifeq ($(filter clean help,$(MAKECMDGOALS)),)
include $(OUT)/.rows/rules.mk
endif

videos: $(VIDEOS)
