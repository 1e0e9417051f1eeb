// Seeds for fuzz_hf_tokenizer: a tokenizer of each kind, with what the other files say.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/fuzz/seeds.h"

// A fourth of the rows, then the files, a NUL between each two. ' is written as ", and @ as a token
// for each byte.
#define SEED(name, text)                                                                           \
    {                                                                                              \
        name, text, sizeof(text) - 1                                                               \
    }
#define MARK "\xe2\x96\x81"

static const struct {
    const char *name, *text;
    size_t len;
} seeds[] = {
    SEED("bytes", "\x03{'normalizer':{'type':'NFC'},'pre_tokenizer':{'type':'Sequence',"
                  "'pretokenizers':[{'type':'Digits','individual_digits':true},{'type':'ByteLevel',"
                  "'add_prefix_space':false,'use_regex':true}]},'added_tokens':[{'id':0,'content':"
                  "'<s>','special':true},{'id':6,'content':'<t>'}],'post_processor':{'type':"
                  "'Sequence','processors':[{'type':'ByteLevel'},{'type':'TemplateProcessing',"
                  "'single':[{'SpecialToken':{'id':'<s>'}},{'Sequence':{'id':'A'}},{'SpecialToken':"
                  "{'id':'<t>'}}],'pair':[{'SpecialToken':{'id':'<s>'}},{'Sequence':{'id':'A'}},{"
                  "'SpecialToken':{'id':'<t>'}},{'Sequence':{'id':'B'}}]}]},'model':{'type':'BPE',"
                  "'merges':['a b',['ab','\xc4\xa0']],'vocab':{'<s>':0,'a':1,'b':2,'\xc4\xa0':3,"
                  "'ab':4,'ab\xc4\xa0':5}}}\0"
                  "{'bos_token':{'content':'<s>'},'eos_token':'<s>','add_eos_token':true,"
                  "'chat_template':[{'name':'default','template':'{{ 1 }}'}]}\0"
                  "{'pad_token':'<t>'}\0{'text_config':{'eos_token_id':1}}\0{'mask_token_id':2}\0"
                  "{{ 2 }}"),
    SEED("cut",
         "\x02{'pre_tokenizer':{'type':'Sequence','pretokenizers':[{'type':'Split','pattern':"
         "{'Regex':'(?i:\\u0027s|\\u0027t|\\u0027re|\\u0027ve|\\u0027m|\\u0027ll|\\u0027d)|"
         "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+"
         "[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+'},'behavior':'Removed',"
         "'invert':true},{'type':'ByteLevel','add_prefix_space':false,'use_regex':false}]},"
         "'model':{'type':'BPE','ignore_merges':true,'dropout':null,'merges':[],'vocab':{'a':"
         "0,'aa':2}}}\0{'add_bos_token':true}\0\0{'bos_token_id':2}"),
    SEED("pieces",
         "\x42{'normalizer':{'type':'Sequence','normalizers':[{'type':'Prepend',"
         "'prepend':'" MARK "'},{'type':'Replace','pattern':{'String':' '},'content':"
         "'" MARK "'}]},'pre_tokenizer':null,'added_tokens':[{'id':256,'content':'<s>',"
         "'special':true},{'id':261,'content':'" MARK MARK "'}],'model':{'type':'BPE',"
         "'byte_fallback':true,'unk_token':'<unk>','merges':[['a','b'],['" MARK "','ab']],"
         "'vocab':{'" MARK "':257,'a':258,'b':259,'ab':260,'" MARK "ab':262,'<unk>':263"
         "@}}}\0{}\0{'bos_token':'<s>'}"),
    SEED("words", "\x02{'normalizer':{'type':'BertNormalizer','clean_text':true,"
                  "'handle_chinese_chars':true,'strip_accents':false,'lowercase':true},"
                  "'pre_tokenizer':{'type':'BertPreTokenizer'},'post_processor':{'type':"
                  "'BertProcessing','sep':['[SEP]',2],'cls':['[CLS]',1]},'added_tokens':[{'id':0,"
                  "'content':'[UNK]','special':true},{'id':1,'content':'[CLS]','special':true},{"
                  "'id':2,'content':'[SEP]','special':true}],'model':{'type':'WordPiece',"
                  "'unk_token':'[UNK]','continuing_subword_prefix':'##','max_input_chars_per_word':"
                  "100,'vocab':{'[UNK]':0,'[CLS]':1,'[SEP]':2,'a':3,'##b':4}}}\0"
                  "{'cls_token':'[CLS]','sep_token':'[SEP]'}"),
};

static size_t write_bytes(char *out)
{
    size_t n = 0;

    for (unsigned b = 0; b < 256; b++)
        n += (size_t)sprintf(out + n, ",\"<0x%02X>\":%u", b, b);
    return n;
}

void write_hf_seeds(const char *dir)
{
    for (size_t i = 0; i < sizeof(seeds) / sizeof(*seeds); i++) {
        char out[8192];
        size_t n = 0;
        for (size_t j = 0; j < seeds[i].len; j++) {
            char c = seeds[i].text[j];
            if (c == '\'')
                c = '"';
            if (c == '@')
                n += write_bytes(out + n);
            else
                out[n++] = c;
        }
        int fd = seed_create(dir, "fuzz_hf_tokenizer", seeds[i].name);
        seed_check(write(fd, out, n) == (ssize_t)n ? 0 : -EIO, seeds[i].name);
        close(fd);
    }
}
