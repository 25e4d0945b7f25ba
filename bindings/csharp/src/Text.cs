using System;
using System.Text;

namespace Kronsae.Native
{
    /// <summary>Text between the runtime's UTF-16 and the library's UTF-8.</summary>
    internal static unsafe class Text
    {
        /// <summary>UTF-8 up to a NUL; null for NULL.</summary>
        internal static string From(byte* text)
        {
            if (text == null) return null;
            var length = 0;
            while (text[length] != 0) length++;
            return length == 0 ? "" : Encoding.UTF8.GetString(text, length);
        }

        /// <summary>UTF-8 with a NUL; null for null.</summary>
        internal static byte[] ToC(string text, string parameter)
        {
            if (text == null) return null;
            if (text.IndexOf('\0') >= 0)
            {
                throw new ArgumentException("contains a NUL character, where the library's text ends: remove it", parameter);
            }
            var bytes = new byte[Encoding.UTF8.GetByteCount(text) + 1];
            Encoding.UTF8.GetBytes(text, 0, text.Length, bytes, 0);
            return bytes;
        }

        /// <summary>As ToC, of a text that must be there.</summary>
        internal static byte[] Needed(string text, string parameter)
        {
            if (text == null) throw new ArgumentNullException(parameter);
            return ToC(text, parameter);
        }
    }
}
