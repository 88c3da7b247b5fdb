/* Group norm for any processor. */
#define ISA group_isa_c

#include "kernels/cpu/group_row.h"
