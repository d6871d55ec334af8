/* What bindgen reads of libtpms: the library interface (tpm_library.h) and the names of its NV blobs. */
#include <libtpms/tpm_library.h>
#include <libtpms/tpm_error.h>
#include <libtpms/tpm_nvfilename.h>
#include <libtpms/tpm_tis.h>
