import { expect, test } from 'bun:test'
import { join } from 'node:path'
import { CLUSTER_VERSION } from '@ckpt/core'

const ROOT = join(import.meta.dir, '../../../../..')
/** Where it is written what daemons say to each other. */
const FILES = [
  'packages/core/src/cluster/layout-columns.ts',
  'packages/core/src/cluster/node-info.ts',
  'packages/core/src/cluster/packets.ts',
  'packages/server/src/daemon/rank/messages.ts',
  'packages/server/src/daemon/remote/messages.ts',
  'packages/server/src/daemon/remote/pack.ts',
]
const COMMENTS = /\/\*.*?\*\/|^\s*\/\/.*$/gms
const DIGEST_CHARACTERS = 16

/**
 * Daemons of one version read each other's messages. Does this fail, then raise `CLUSTER_VERSION` if a daemon from before the change
 * reads a message otherwise, or not at all; and write the new digest here.
 */
test('the messages between daemons are those of their version', async () => {
  const digest = new Bun.CryptoHasher('sha256')
  for (const file of FILES) {
    const text = await Bun.file(join(ROOT, file)).text()
    digest.update(text.replace(COMMENTS, '').replace(/\s+/g, ' '))
  }
  const found = digest.digest('hex').slice(0, DIGEST_CHARACTERS)
  expect({ version: CLUSTER_VERSION, digest: found }).toEqual({
    version: 6,
    digest: '7105e4466c1460be',
  })
})
