import { assert } from './assert.ts'

/**
 * Bytes of a stripe: large enough to be read sequentially, small enough that neighbours load
 * different links.
 */
export const STRIPE_BYTES = 256 * 2 ** 20

/**
 * Which of `daemonCount` daemons owns each tensor of a checkpoint that they register together: the
 * tensors, in natural order, are cut into stripes, and stripe i belongs to daemon `i mod
 * daemonCount`. A tensor belongs to the stripe it starts in.
 *
 * @param bytes of each tensor in natural order
 */
export function stripeOwners(
  bytes: ArrayLike<number>,
  daemonCount: number,
  stripeBytes = STRIPE_BYTES,
): Uint32Array {
  assert(daemonCount > 0 && stripeBytes > 0, 'no daemon or no stripe')
  const owners = new Uint32Array(bytes.length)
  let begin = 0
  for (let i = 0; i < bytes.length; i++) {
    owners[i] = Math.floor(begin / stripeBytes) % daemonCount
    begin += bytes[i] as number
  }
  return owners
}
