import { CkptError } from '@ckpt/core/api/errors'
import { openLibzmq } from './libzmq.ts'
import { cString } from './structs.ts'

/** Of every key of CURVE (an X25519 key). */
export const CURVE_KEY_BYTES = 32
const KEY_TEXT_LENGTH = 40

/** RFC 32 of ZeroMQ. */
const Z85 = '0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#'

/** Z85 text of a number of bytes that 4 divides. */
export function z85Encode(bytes: Uint8Array): string {
  if (bytes.length % 4 !== 0) throw new RangeError('Z85 wants a multiple of 4 bytes')
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  let text = ''
  for (let at = 0; at < bytes.length; at += 4) {
    const value = view.getUint32(at, false)
    for (let power = 85 ** 4; power >= 1; power /= 85) text += Z85[Math.floor(value / power) % 85]
  }
  return text
}

/** @throws RangeError on what is no Z85 text */
export function z85Decode(text: string): Uint8Array {
  if (text.length % 5 !== 0) throw new RangeError('Z85 text has a multiple of 5 characters')
  const view = new DataView(new ArrayBuffer((text.length / 5) * 4))
  for (let at = 0; at < text.length; at += 5) {
    let value = 0
    for (const character of text.slice(at, at + 5)) {
      const digit = Z85.indexOf(character)
      if (digit < 0) throw new RangeError(`'${character}' is no character of Z85`)
      value = value * 85 + digit
    }
    if (value >= 2 ** 32) throw new RangeError('a group of Z85 text is too large')
    view.setUint32((at / 5) * 4, value, false)
  }
  return new Uint8Array(view.buffer)
}

/**
 * The public key of a secret one; any 32 bytes are a secret key.
 *
 * @throws CkptError `native_missing` where libzmq was built without CURVE
 */
export function curvePublicKey(secret: Uint8Array): Uint8Array {
  const calls = openLibzmq()
  if (calls.zmq_has(cString('curve')) !== 1) {
    throw new CkptError('native_missing', 'this libzmq was built without CURVE')
  }
  const text = new Uint8Array(new ArrayBuffer(KEY_TEXT_LENGTH + 1))
  if (calls.zmq_curve_public(text, cString(z85Encode(checkKey(secret)))) !== 0) {
    throw new CkptError('internal', 'zmq_curve_public failed')
  }
  return z85Decode(new TextDecoder('latin1').decode(text.subarray(0, KEY_TEXT_LENGTH)))
}

export function checkKey(key: Uint8Array): Uint8Array {
  if (key.length !== CURVE_KEY_BYTES) {
    throw new RangeError(`a key of CURVE has ${CURVE_KEY_BYTES} bytes, not ${key.length}`)
  }
  return key
}

export function checkKeyText(key: string): string {
  if (key.length !== KEY_TEXT_LENGTH) {
    throw new RangeError(`a key of CURVE has ${KEY_TEXT_LENGTH} characters as Z85 text`)
  }
  return key
}
