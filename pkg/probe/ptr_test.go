// SPDX-License-Identifier: Apache-2.0

package probe

import "unsafe"

func ptr(b *byte) unsafe.Pointer { return unsafe.Pointer(b) }
