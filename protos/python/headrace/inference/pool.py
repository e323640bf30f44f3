"""The descriptor pool that holds Headrace's own messages.

Two files that declare `package inference` clash in protobuf's default pool, and tritonclient has
one. Messages of this pool are ordinary protobuf messages; only look-ups by full name in the
default pool do not find them.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
