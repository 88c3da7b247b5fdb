/* hv-tensor check: which stage file is it, and will the next stage take it? */
#include <stdio.h>
#include <string.h>

#include "hv-tensor.h"
#include "io/contract.h"
#include "io/listing.h"

#define STAGE_FILES 16

/* One file of the contract: what the operands hold of it. */
struct stage {
    const char *file, *taker;
    int         have, missing;
    const char *first_missing;
};

static int holds(const struct hv_operands *o, const char *key)
{
    const size_t n = strlen(key);

    if (key[n - 1] != '*')
        return hv_operands_have(o, key);
    for (int i = 0; i < o->n; i++)
        for (int k = 0; k < hv_in_count(o->in[i]); k++)
            if (!strncmp(hv_in_entry(o->in[i], k)->name, key, n - 1))
                return 1;
    return 0;
}

/* A key that two files share (latents) counts for the one whose other keys are there, else for the first. */
static int shared_with_earlier(const struct hv_key *k)
{
    for (const struct hv_key *p = hv_contract; p < k; p++)
        if (!strcmp(p->key, k->key))
            return 1;
    return 0;
}

static int collect(const struct hv_operands *o, struct stage s[STAGE_FILES])
{
    int n = 0;

    for (const struct hv_key *k = hv_contract; k->file; k++) {
        if (!n || strcmp(s[n - 1].file, k->file))
            s[n++] = (struct stage){.file = k->file, .taker = k->taker};
        struct stage *x = &s[n - 1];
        if (holds(o, k->key)) {
            x->have += !shared_with_earlier(k);
        } else if (!k->optional) {
            if (!x->missing++)
                x->first_missing = k->key;
        }
    }
    return n;
}

/* NaN and Inf in the keys of the contract; the first is a fault of the message. */
static int check_values(struct hv_operands *o, struct hv_err *e)
{
    hv_tensor t;

    for (int i = 0; i < o->n; i++)
        for (int k = 0; k < hv_in_count(o->in[i]); k++) {
            const char *name = hv_in_entry(o->in[i], k)->name;
            if (hv_contract_find(name) && hv_operands_get(o, name, &t, e))
                return e->code;
        }
    return 0;
}

static void print_sizes(const struct hv_operands *o)
{
    for (int i = 0; i < o->n_bind; i++)
        printf("%s%s = %lld", i ? ", " : "", o->bind[i].name, (long long)o->bind[i].size);
    if (o->n_bind)
        putchar('\n');
}

static int report(struct hv_operands *o, struct hv_err *e)
{
    struct stage s[STAGE_FILES];
    const int n = collect(o, s);
    int found = 0, faults = 0;

    for (int i = 0; i < n; i++) {
        if (!s[i].have)
            continue;
        found++;
        if (s[i].missing) {
            faults++;
            printf("%s: incomplete: no '%s'\n", s[i].file, s[i].first_missing);
        } else if (*s[i].taker) {
            printf("%s: complete: %s takes it\n", s[i].file, s[i].taker);
        } else {
            printf("%s: complete\n", s[i].file);
        }
    }
    for (int i = 0; i < o->n; i++)
        for (int k = 0; k < hv_in_count(o->in[i]); k++)
            if (!hv_contract_find(hv_in_entry(o->in[i], k)->name)) {
                hv_print_safe(stdout, hv_in_entry(o->in[i], k)->name);
                puts(": no key of a stage file: ignored by the stages");
            }
    print_sizes(o);
    if (!found)
        return hv_fail(e, HV_EDIFF, "no stage file: none of its tensors is a key of the contract (hv-tensor check --table)");
    return faults ? hv_fail(e, HV_EDIFF, "%d incomplete stage file%s", faults, faults > 1 ? "s" : "") : 0;
}

int cmd_check(int argc, char **argv, struct hv_err *e)
{
    static struct hv_common c;
    static int table;
    const struct hv_opt opts[] = {
        {"table", 0, HV_OPT_FLAG, &table, NULL, "print the contract: every key of every stage file", 0, 0}, {0}
    };
    const struct hv_cli cli = {"hv-tensor", "check [FILE]...",
                               "Says which stage files the operands are, whether they are whole and fit each other, and who\n"
                               "takes them.",
                               opts, &c, 0, HV_OPERANDS};
    struct hv_operands o = {0};
    int rc = hv_cli_parse(&cli, argc, argv, e);

    if (!rc)
        rc = hv_cli_no_output(&c, "check", e);
    if (rc)
        return rc;
    if (table) {
        hv_contract_print(stdout);
        return 0;
    }
    rc = hv_operands_open(&o, c.operand, c.n_operands, e);
    if (!rc)
        rc = check_values(&o, e);
    /* What a stage would refuse is the answer here, not a failure of this program. */
    if (rc == HV_EINPUT || rc == HV_ENUM)
        e->code = rc = HV_EDIFF;
    if (!rc)
        rc = report(&o, e);
    hv_operands_close(&o);
    return rc;
}
